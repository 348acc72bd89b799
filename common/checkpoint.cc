#include "common/checkpoint.h"

#include <array>
#include <charconv>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/sha256.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr char kFormatKey[] = "format";
constexpr char kFormatPrefix[] = "ringmaster-checkpoint-";
constexpr char kFormat[] = "ringmaster-checkpoint-1";
constexpr char kChecksumKey[] = "checksum";
constexpr size_t kChecksumSize = 64;  // hex digits of a SHA-256

constexpr const char* kPrefixes[] = {"", "optimizer/first_moment/", "optimizer/second_moment/"};

absl::Status Damaged(const std::string& what) { return absl::DataLossError(what); }

// The three buffers of a state, in the order of kPrefixes.
template <typename State>
auto PartsOf(State& state) {
  return std::array{&state.parameters, &state.first_moment, &state.second_moment};
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// The shortest decimal that reads back as the same float.
std::string FloatText(float value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

const char* KindText(OptimizerSpec::Kind kind) {
  return kind == OptimizerSpec::Kind::kSgd ? "sgd" : "adam";
}

std::string OptimizerText(const OptimizerSpec& optimizer) {
  std::string text =
      absl::StrCat(KindText(optimizer.kind), " at ", FloatText(optimizer.learning_rate));
  if (optimizer.kind == OptimizerSpec::Kind::kAdam) {
    absl::StrAppend(&text, " (beta1 ", FloatText(optimizer.beta1), ", beta2 ",
                    FloatText(optimizer.beta2), ", epsilon ", FloatText(optimizer.epsilon), ")");
  }
  return text;
}

std::string BoolText(bool value) { return value ? "true" : "false"; }

// ---------------------------------------------------------------- metadata

SafetensorsMetadata MetadataOf(const Checkpoint& checkpoint) {
  const TrainingRecipe& recipe = checkpoint.recipe;
  return {
      {kFormatKey, kFormat},
      {"run_id", checkpoint.run_id},
      {"generation", absl::StrCat(checkpoint.generation)},
      {"position", absl::StrCat(checkpoint.position)},
      {"epoch", absl::StrCat(checkpoint.epoch())},
      {"step", absl::StrCat(checkpoint.step())},
      {"updates", absl::StrCat(checkpoint.state.step)},
      {"state_digest", checkpoint.state_digest},
      {"layers", absl::StrJoin(recipe.model.layers, ",")},
      {"optimizer", KindText(recipe.optimizer.kind)},
      {"learning_rate", FloatText(recipe.optimizer.learning_rate)},
      {"beta1", FloatText(recipe.optimizer.beta1)},
      {"beta2", FloatText(recipe.optimizer.beta2)},
      {"epsilon", FloatText(recipe.optimizer.epsilon)},
      {"seed", absl::StrCat(recipe.seed)},
      {"global_batch", absl::StrCat(recipe.global_batch)},
      {"epochs", absl::StrCat(recipe.epochs)},
      {"num_train_samples", absl::StrCat(recipe.num_train_samples)},
      {"num_test_samples", absl::StrCat(recipe.num_test_samples)},
      {"data_digest", recipe.data_digest},
      {"reproducible", BoolText(recipe.reproducible)},
      {kChecksumKey, std::string(kChecksumSize, '0')},
  };
}

// Reads values by name and keeps the first error.
class MetadataReader {
 public:
  explicit MetadataReader(const SafetensorsMetadata& metadata) : metadata_(metadata) {}

  const absl::Status& status() const { return status_; }

  void Read(const std::string& name, std::string* value) {
    if (const std::string* text = Find(name)) *value = *text;
  }
  template <typename Integer>
  void Read(const std::string& name, Integer* value) {
    const std::string* text = Find(name);
    if (text != nullptr && !absl::SimpleAtoi(*text, value)) Refuse(name, *text, "a number");
  }
  void Read(const std::string& name, float* value) {
    const std::string* text = Find(name);
    if (text != nullptr && !absl::SimpleAtof(*text, value)) Refuse(name, *text, "a number");
  }
  void Read(const std::string& name, bool* value) {
    const std::string* text = Find(name);
    if (text == nullptr) return;
    *value = *text == "true";
    if (*text != BoolText(*value)) Refuse(name, *text, "true or false");
  }
  void Read(const std::string& name, OptimizerSpec::Kind* value) {
    const std::string* text = Find(name);
    if (text == nullptr) return;
    *value = *text == "sgd" ? OptimizerSpec::Kind::kSgd : OptimizerSpec::Kind::kAdam;
    if (*text != KindText(*value)) Refuse(name, *text, "adam or sgd");
  }
  void Read(const std::string& name, std::vector<int>* value) {
    const std::string* text = Find(name);
    if (text == nullptr) return;
    value->clear();
    for (const auto& item : absl::StrSplit(*text, ',')) {
      value->push_back(0);
      if (!absl::SimpleAtoi(item, &value->back())) return Refuse(name, *text, "widths");
    }
  }

 private:
  const std::string* Find(const std::string& name) {
    const auto found = metadata_.find(name);
    if (found != metadata_.end()) return &found->second;
    status_.Update(Damaged(absl::StrCat("its metadata have no ", name)));
    return nullptr;
  }
  void Refuse(const std::string& name, const std::string& text, const char* wanted) {
    status_.Update(Damaged(absl::StrCat("its ", name, " is '", text, "', wanted ", wanted)));
  }

  const SafetensorsMetadata& metadata_;
  absl::Status status_;
};

absl::StatusOr<Checkpoint> FromMetadata(const SafetensorsMetadata& metadata) {
  Checkpoint checkpoint;
  TrainingRecipe& recipe = checkpoint.recipe;
  MetadataReader reader(metadata);
  reader.Read("run_id", &checkpoint.run_id);
  reader.Read("generation", &checkpoint.generation);
  reader.Read("position", &checkpoint.position);
  reader.Read("updates", &checkpoint.state.step);
  reader.Read("state_digest", &checkpoint.state_digest);
  reader.Read("layers", &recipe.model.layers);
  reader.Read("optimizer", &recipe.optimizer.kind);
  reader.Read("learning_rate", &recipe.optimizer.learning_rate);
  reader.Read("beta1", &recipe.optimizer.beta1);
  reader.Read("beta2", &recipe.optimizer.beta2);
  reader.Read("epsilon", &recipe.optimizer.epsilon);
  reader.Read("seed", &recipe.seed);
  reader.Read("global_batch", &recipe.global_batch);
  reader.Read("epochs", &recipe.epochs);
  reader.Read("num_train_samples", &recipe.num_train_samples);
  reader.Read("num_test_samples", &recipe.num_test_samples);
  reader.Read("data_digest", &recipe.data_digest);
  reader.Read("reproducible", &recipe.reproducible);
  RM_RETURN_IF_ERROR(reader.status());
  const absl::Status valid = recipe.Validate();
  if (!valid.ok()) return Damaged(absl::StrCat("its recipe is not valid: ", valid.message()));
  return checkpoint;
}

// ---------------------------------------------------------------- verification

// The SHA-256 of the whole file, where the digits of the checksum itself, at `at`, count as zeros.
std::string ChecksumOf(std::string_view bytes, size_t at) {
  Sha256 sha256;
  sha256.Update(bytes.substr(0, at));
  sha256.Update(std::string(kChecksumSize, '0'));
  sha256.Update(bytes.substr(at + kChecksumSize));
  return sha256.FinishHex();
}

absl::Status CheckFormat(const SafetensorsMetadata& metadata) {
  if (!ClaimsToBeCheckpoint(metadata)) {
    return absl::InvalidArgumentError(
        "it is a safetensors file, but not a checkpoint: its metadata do not say so");
  }
  if (const std::string& format = metadata.at(kFormatKey); format != kFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has the format '", format, "', wanted '", kFormat,
                     "': it was written by another version of Ringmaster; use that one"));
  }
  return absl::OkStatus();
}

absl::Status CheckChecksum(std::string_view bytes, const SafetensorsMetadata& metadata) {
  const auto found = metadata.find(kChecksumKey);
  const std::string told = found == metadata.end() ? "" : found->second;
  const size_t at = told.size() == kChecksumSize ? bytes.find(told) : std::string_view::npos;
  if (at == std::string_view::npos) {
    return Damaged(absl::StrCat("its checksum is '", told, "', wanted 64 hex digits"));
  }
  if (const std::string actual = ChecksumOf(bytes, at); actual != told) {
    return Damaged(absl::StrCat("it is damaged: its checksum is ", actual, ", wanted ", told));
  }
  return absl::OkStatus();
}

// Moves the tensors to the state; they must be those of its model, in order.
absl::Status TakeTensors(const std::vector<Tensor>& tensors, Checkpoint* checkpoint) {
  const std::vector<ParameterSlice> slices = checkpoint->recipe.model.Slices();
  if (tensors.size() != 3 * slices.size()) {
    return Damaged(absl::StrCat("it has ", tensors.size(), " tensors, wanted ", 3 * slices.size()));
  }
  auto tensor = tensors.begin();
  const auto parts = PartsOf(checkpoint->state);
  for (size_t part = 0; part < parts.size(); ++part) {
    for (const ParameterSlice& slice : slices) {
      const std::string name = absl::StrCat(kPrefixes[part], slice.name);
      if (tensor->name != name || tensor->shape != slice.shape) {
        return Damaged(absl::StrCat("it has the tensor ", tensor->name, " ",
                                    ShapeText(tensor->shape), ", wanted ", name, " ",
                                    ShapeText(slice.shape)));
      }
      parts[part]->insert(parts[part]->end(), tensor->values.begin(), tensor->values.end());
      ++tensor;
    }
  }
  return absl::OkStatus();
}

absl::Status CheckState(const Checkpoint& checkpoint) {
  const Timeline timeline = checkpoint.recipe.timeline();
  if (checkpoint.position > timeline.end()) {
    return Damaged(absl::StrCat("its position is ", checkpoint.position, ", but the run ends at ",
                                timeline.end()));
  }
  if (const uint64_t updates = timeline.UpdatesBefore(checkpoint.position);
      checkpoint.state.step != updates) {
    return Damaged(absl::StrCat("its state has had ", checkpoint.state.step, " updates, wanted ",
                                updates, " at position ", checkpoint.position));
  }
  if (const std::string digest = StateSha256(checkpoint.state); digest != checkpoint.state_digest) {
    return Damaged(
        absl::StrCat("its state has the digest ", digest, ", wanted ", checkpoint.state_digest));
  }
  return absl::OkStatus();
}

// Appends "WHAT: VALUE in the checkpoint, VALUE in this run" where the two differ.
void Compare(const char* what, const std::string& theirs, const std::string& ours,
             std::vector<std::string>* differences) {
  if (theirs == ours) return;
  differences->push_back(
      absl::StrCat(what, ": ", theirs, " in the checkpoint, ", ours, " in this run"));
}

absl::Status CheckCount(const char* what, uint32_t count) {
  constexpr uint32_t kMaxCount = uint32_t{1} << 31;
  if (count >= 1 && count <= kMaxCount) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is ", count, "; it must be from 1 to ", kMaxCount));
}

}  // namespace

absl::Status TrainingRecipe::Validate() const {
  absl::Status status = model.Validate();
  status.Update(optimizer.Validate());
  status.Update(CheckCount("the global batch", global_batch));
  status.Update(CheckCount("the number of epochs", epochs));
  status.Update(CheckCount("the number of training samples", num_train_samples));
  status.Update(CheckCount("the number of test samples", num_test_samples));
  return status;
}

uint32_t Checkpoint::epoch() const { return recipe.timeline().At(position).epoch; }

uint32_t Checkpoint::step() const {
  const Timeline timeline = recipe.timeline();
  const TimelineEntry entry = timeline.At(position);
  return entry.evaluation ? timeline.steps_per_epoch() : entry.step;
}

absl::StatusOr<std::string> EncodeCheckpoint(const Checkpoint& checkpoint) {
  RM_RETURN_IF_ERROR(checkpoint.recipe.Validate());
  const ModelSpec& model = checkpoint.recipe.model;
  const std::vector<ParameterSlice> slices = model.Slices();
  const auto parts = PartsOf(checkpoint.state);
  std::vector<TensorView> tensors;
  for (size_t part = 0; part < parts.size(); ++part) {
    const std::vector<float>& values = *parts[part];
    if (values.size() != model.num_parameters()) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot write a checkpoint: the state has ", values.size(),
                       " values a part, but its model has ", model.num_parameters()));
    }
    for (const ParameterSlice& slice : slices) {
      tensors.push_back({absl::StrCat(kPrefixes[part], slice.name), slice.shape,
                         std::span(values).subspan(slice.offset, slice.count)});
    }
  }
  std::string bytes = EncodeSafetensors(tensors, MetadataOf(checkpoint));
  const std::string field = absl::StrCat("\"", kChecksumKey, "\":\"");
  const size_t at = bytes.find(field) + field.size();
  return bytes.replace(at, kChecksumSize, ChecksumOf(bytes, at));
}

absl::StatusOr<Checkpoint> DecodeCheckpoint(std::string_view bytes) {
  RM_ASSIGN_OR_RETURN(const Safetensors file, DecodeSafetensors(bytes));
  RM_RETURN_IF_ERROR(CheckFormat(file.metadata));
  RM_RETURN_IF_ERROR(CheckChecksum(bytes, file.metadata));
  RM_ASSIGN_OR_RETURN(Checkpoint checkpoint, FromMetadata(file.metadata));
  RM_RETURN_IF_ERROR(TakeTensors(file.tensors, &checkpoint));
  RM_RETURN_IF_ERROR(CheckState(checkpoint));
  return checkpoint;
}

bool ClaimsToBeCheckpoint(const SafetensorsMetadata& metadata) {
  const auto format = metadata.find(kFormatKey);
  return format != metadata.end() && format->second.starts_with(kFormatPrefix);
}

absl::StatusOr<Checkpoint> LoadCheckpoint(const std::string& path) {
  RM_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  auto checkpoint = DecodeCheckpoint(bytes);
  if (checkpoint.ok()) return checkpoint;
  return absl::Status(checkpoint.status().code(),
                      absl::StrCat(path, ": ", checkpoint.status().message()));
}

absl::Status CheckCompatible(const Checkpoint& checkpoint, const TrainingRecipe& wanted) {
  const TrainingRecipe& recipe = checkpoint.recipe;
  std::vector<std::string> differences;
  Compare("data set", recipe.data_digest, wanted.data_digest, &differences);
  Compare("training samples", absl::StrCat(recipe.num_train_samples),
          absl::StrCat(wanted.num_train_samples), &differences);
  Compare("test samples", absl::StrCat(recipe.num_test_samples),
          absl::StrCat(wanted.num_test_samples), &differences);
  Compare("layers", absl::StrJoin(recipe.model.layers, ","),
          absl::StrJoin(wanted.model.layers, ","), &differences);
  Compare("optimizer", OptimizerText(recipe.optimizer), OptimizerText(wanted.optimizer),
          &differences);
  Compare("seed", absl::StrCat(recipe.seed), absl::StrCat(wanted.seed), &differences);
  Compare("global batch", absl::StrCat(recipe.global_batch), absl::StrCat(wanted.global_batch),
          &differences);
  Compare("reproducible", BoolText(recipe.reproducible), BoolText(wanted.reproducible),
          &differences);
  if (!differences.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the checkpoint is of another training: ", absl::StrJoin(differences, "; "),
                     ". Train with what the checkpoint has, or begin anew (--resume never)"));
  }
  if (checkpoint.position > wanted.timeline().end()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint is at step ", checkpoint.step(), " of epoch ", checkpoint.epoch(),
        " (from 0), beyond the end of a run of ", wanted.epochs, " epochs; ask for more epochs"));
  }
  return absl::OkStatus();
}

}  // namespace ringmaster
