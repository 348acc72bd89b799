#include "common/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/safetensors.h"
#include "common/sha256.h"
#include "common/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checkpoints.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

void ExpectRefused(const std::string& bytes, absl::StatusCode code, const std::string& part) {
  const absl::Status status = DecodeCheckpoint(bytes).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(part));
}

// The checksum as docs/checkpoints.md tells it, of a file that has zeros in its place.
std::string WithChecksum(std::string bytes) {
  const std::string zeros(64, '0');
  return bytes.replace(bytes.find(zeros), zeros.size(), Sha256Hex(bytes));
}

// The file of a good checkpoint with other metadata and tensors, and the right checksum.
std::string Forged(const SafetensorsMetadata& changes,
                   const std::function<void(std::vector<Tensor>*)>& change_tensors = nullptr) {
  Safetensors file = DecodeSafetensors(EncodeCheckpoint(CheckpointAt(7)).value()).value();
  for (const auto& [name, value] : changes) file.metadata[name] = value;
  file.metadata["checksum"] = std::string(64, '0');
  if (change_tensors != nullptr) change_tensors(&file.tensors);
  std::vector<TensorView> views;
  for (const Tensor& tensor : file.tensors) {
    views.push_back({tensor.name, tensor.shape, tensor.values});
  }
  return WithChecksum(EncodeSafetensors(views, file.metadata));
}

TEST(CheckpointTest, RoundTrip) {
  TrainingRecipe deep = SmallRecipe();
  deep.model.layers = {7, 5, 3, 2};
  deep.optimizer = {.kind = OptimizerSpec::Kind::kSgd, .learning_rate = 0.1f};
  deep.reproducible = false;
  for (const TrainingRecipe& recipe : {SmallRecipe(), deep}) {
    for (uint64_t position = 0; position <= recipe.timeline().end(); ++position) {
      const Checkpoint checkpoint = CheckpointAt(position, uint64_t{1} << 63, recipe);
      const auto bytes = EncodeCheckpoint(checkpoint);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      const auto decoded = DecodeCheckpoint(*bytes);
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      EXPECT_EQ(*decoded, checkpoint) << position;
    }
  }
}

TEST(CheckpointTest, FloatsKeepTheirBits) {
  Checkpoint checkpoint = CheckpointAt(3);
  checkpoint.recipe.optimizer = {.learning_rate = 0.1f + 1e-8f,
                                 .beta1 = std::nextafter(1.0f, 0.0f),
                                 .beta2 = 1.0f / 3,
                                 .epsilon = std::numeric_limits<float>::denorm_min()};
  // A run that has diverged is saved, too.
  checkpoint.state.parameters[0] = std::numeric_limits<float>::quiet_NaN();
  checkpoint.state.parameters[1] = -std::numeric_limits<float>::infinity();
  checkpoint.state_digest = StateSha256(checkpoint.state);
  const auto decoded = DecodeCheckpoint(EncodeCheckpoint(checkpoint).value());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->recipe, checkpoint.recipe);
  EXPECT_EQ(StateSha256(decoded->state), checkpoint.state_digest);
}

TEST(CheckpointTest, EpochAndStep) {
  const auto place = [](uint64_t position) {
    const Checkpoint checkpoint = CheckpointAt(position);
    return std::pair(checkpoint.epoch(), checkpoint.step());
  };
  EXPECT_THAT(place(0), Pair(0u, 0u));
  EXPECT_THAT(place(3), Pair(0u, 3u));
  EXPECT_THAT(place(4), Pair(0u, 4u));  // the evaluation
  EXPECT_THAT(place(5), Pair(1u, 0u));
  EXPECT_THAT(place(30), Pair(6u, 0u));  // the end
}

// What other programs see; docs/checkpoints.md lists it.
TEST(CheckpointTest, Format) {
  const Checkpoint checkpoint = CheckpointAt(7, 5);
  const std::string bytes = EncodeCheckpoint(checkpoint).value();
  Safetensors file = DecodeSafetensors(bytes).value();
  std::vector<std::string> names;
  for (const Tensor& tensor : file.tensors) names.push_back(tensor.name);
  EXPECT_THAT(
      names, testing::ElementsAre(
                 "dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias",
                 "optimizer/first_moment/dense/kernel", "optimizer/first_moment/dense/bias",
                 "optimizer/first_moment/dense_1/kernel", "optimizer/first_moment/dense_1/bias",
                 "optimizer/second_moment/dense/kernel", "optimizer/second_moment/dense/bias",
                 "optimizer/second_moment/dense_1/kernel", "optimizer/second_moment/dense_1/bias"));
  const std::string checksum = file.metadata["checksum"];
  std::string zeroed = bytes;
  zeroed.replace(bytes.find(checksum), 64, std::string(64, '0'));
  EXPECT_EQ(checksum, Sha256Hex(zeroed));
  file.metadata.erase("checksum");
  EXPECT_THAT(
      file.metadata,
      UnorderedElementsAre(
          Pair("format", "ringmaster-checkpoint-1"), Pair("run_id", "run-1"),
          Pair("generation", "5"), Pair("position", "7"), Pair("epoch", "1"), Pair("step", "2"),
          Pair("updates", "6"), Pair("state_digest", checkpoint.state_digest),
          Pair("layers", "5,3,2"), Pair("optimizer", "adam"), Pair("learning_rate", "0.001"),
          Pair("beta1", "0.9"), Pair("beta2", "0.999"), Pair("epsilon", "1e-07"),
          Pair("seed", "18446744073709551615"), Pair("global_batch", "16"), Pair("epochs", "6"),
          Pair("num_train_samples", "60"), Pair("num_test_samples", "10"),
          Pair("data_digest", "da7a"), Pair("reproducible", "true")));
}

TEST(CheckpointTest, StatesAndRecipesThatCannotBeWritten) {
  Checkpoint checkpoint = CheckpointAt(3);
  checkpoint.state.second_moment.pop_back();
  absl::Status status = EncodeCheckpoint(checkpoint).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("25 values a part, but its model has 26"));
  checkpoint = CheckpointAt(3);
  checkpoint.recipe.global_batch = 0;
  status = EncodeCheckpoint(checkpoint).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the global batch is 0"));
}

TEST(CheckpointTest, FilesThatAreNone) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectRefused("", invalid, "0 bytes, too few");
  ExpectRefused(EncodeSafetensors({}), invalid, "not a checkpoint");
  ExpectRefused(EncodeSafetensors({}, {{"format", "pt"}}), invalid, "not a checkpoint");
  ExpectRefused(Forged({{"format", "ringmaster-checkpoint-2"}}), invalid,
                "'ringmaster-checkpoint-2', wanted 'ringmaster-checkpoint-1'");
}

TEST(CheckpointTest, ChecksumCoversEverything) {
  const auto loss = absl::StatusCode::kDataLoss;
  const std::string good = EncodeCheckpoint(CheckpointAt(7)).value();
  std::string bytes = good;
  bytes.replace(bytes.find("\"seed\":\"1844"), 9, "\"seed\":\"2");
  ExpectRefused(bytes, loss, "its checksum is ");
  bytes = good;
  bytes.back() ^= 1;
  ExpectRefused(bytes, loss, "it is damaged: its checksum is ");
  // Spaces around values mean nothing to JSON, and still they are covered.
  bytes = good;
  const size_t end = bytes.find("}  ");
  if (end != std::string::npos) {
    bytes[end + 1] = '\t';
    ExpectRefused(bytes, loss, "it is damaged");
  }
  ExpectRefused(EncodeSafetensors({}, {{"format", "ringmaster-checkpoint-1"}, {"checksum", "0"}}),
                loss, "its checksum is '0', wanted 64 hex digits");
  ExpectRefused(EncodeSafetensors({}, {{"format", "ringmaster-checkpoint-1"}}), loss,
                "its checksum is '', wanted 64 hex digits");
}

TEST(CheckpointTest, MetadataThatDoNotFit) {
  const auto loss = absl::StatusCode::kDataLoss;
  ASSERT_TRUE(DecodeCheckpoint(Forged({})).ok());
  ExpectRefused(WithChecksum(EncodeSafetensors({}, {{"format", "ringmaster-checkpoint-1"},
                                                    {"checksum", std::string(64, '0')}})),
                loss, "its metadata have no run_id");
  ExpectRefused(Forged({{"position", "x"}}), loss, "its position is 'x', wanted a number");
  ExpectRefused(Forged({{"generation", "-1"}}), loss, "its generation is '-1'");
  ExpectRefused(Forged({{"epochs", "4294967296"}}), loss, "its epochs is '4294967296'");
  ExpectRefused(Forged({{"beta1", "?"}}), loss, "its beta1 is '?', wanted a number");
  ExpectRefused(Forged({{"reproducible", "1"}}), loss, "its reproducible is '1', wanted true or");
  ExpectRefused(Forged({{"optimizer", "lion"}}), loss, "'lion', wanted adam or sgd");
  ExpectRefused(Forged({{"layers", "5,,2"}}), loss, "its layers is '5,,2', wanted widths");
  ExpectRefused(Forged({{"layers", "5,0,2"}}), loss, "width 1 of the model is 0");
  ExpectRefused(Forged({{"global_batch", "0"}}), loss, "the global batch is 0");
  ExpectRefused(Forged({{"learning_rate", "nan"}}), loss, "the learning rate must be");
  ExpectRefused(Forged({{"position", "31"}}), loss, "position is 31, but the run ends at 30");
  ExpectRefused(Forged({{"position", "8"}}), loss, "has had 6 updates, wanted 7 at position 8");
  ExpectRefused(Forged({{"updates", "7"}}), loss, "has had 7 updates, wanted 6");
  ExpectRefused(Forged({{"state_digest", "beef"}}), loss, "wanted beef");
}

TEST(CheckpointTest, TensorsThatDoNotFit) {
  const auto loss = absl::StatusCode::kDataLoss;
  ExpectRefused(Forged({{"layers", "5,4,2"}}), loss,
                "it has the tensor dense/kernel [5, 3], wanted dense/kernel [5, 4]");
  ExpectRefused(Forged({{"layers", "5,3"}}), loss, "it has 12 tensors, wanted 6");
  ExpectRefused(Forged({}, [](std::vector<Tensor>* t) { t->pop_back(); }), loss,
                "it has 11 tensors, wanted 12");
  ExpectRefused(Forged({}, [](std::vector<Tensor>* t) { std::swap(t->at(0), t->at(4)); }), loss,
                "it has the tensor optimizer/first_moment/dense/kernel [5, 3], wanted dense");
  ExpectRefused(Forged({}, [](std::vector<Tensor>* t) { t->at(1).values[0] += 1; }), loss,
                "its state has the digest ");
}

TEST(CheckpointTest, EachTruncationIsRefused) {
  const std::string bytes = EncodeCheckpoint(CheckpointAt(7)).value();
  for (size_t left = 0; left < bytes.size(); ++left) {
    ASSERT_FALSE(DecodeCheckpoint(bytes.substr(0, left)).ok()) << left;
  }
}

// Damages `bytes` in one of the ways that disks and people do.
std::string Corrupt(std::string bytes, const std::string& other, std::mt19937_64* random) {
  const auto below = [&](size_t end) { return static_cast<size_t>((*random)() % end); };
  // Every second time in the header, which is where cunning is needed.
  const size_t at = below(below(2) == 0 ? 1500 : bytes.size());
  const size_t count = 1 + below(64);
  switch (below(8)) {
    case 0:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
      break;
    case 1:
      bytes[at] = static_cast<char>(below(256));
      break;
    case 2:
      bytes.resize(at);
      break;
    case 3:
      bytes.append(count, static_cast<char>(below(256)));
      break;
    case 4:  // a block is lost, or read as zeros
      bytes.replace(at, std::min(count, bytes.size() - at), below(2) * count, '\0');
      break;
    case 5:  // the first half of one file, the second of another
      bytes = bytes.substr(0, at) + other.substr(at);
      break;
    case 6:  // blocks change places
      bytes = bytes.substr(at) + bytes.substr(0, at);
      break;
    case 7:  // a wrong length of the header, often a plausible one
      bytes[below(8)] = static_cast<char>(below(256));
      break;
  }
  return bytes;
}

TEST(CheckpointTest, TenThousandCorruptionsAreRefusedOrHarmless) {
  const Checkpoint checkpoint = CheckpointAt(7, 5);
  const std::string good = EncodeCheckpoint(checkpoint).value();
  const std::string other = EncodeCheckpoint(CheckpointAt(8, 5)).value();
  ASSERT_EQ(good.size(), other.size());
  int refused = 0;
  int unchanged = 0;
  for (uint64_t seed = 0; seed < 10'000; ++seed) {
    std::mt19937_64 random(seed);
    const std::string bytes = Corrupt(good, other, &random);
    const auto decoded = DecodeCheckpoint(bytes);
    if (decoded.ok()) {
      // The checksum covers each byte: nothing but the file itself, or the other one, is taken.
      ASSERT_TRUE(bytes == good || bytes == other) << seed;
      ++unchanged;
      continue;
    }
    ASSERT_TRUE(decoded.status().code() == absl::StatusCode::kInvalidArgument ||
                decoded.status().code() == absl::StatusCode::kDataLoss)
        << seed << decoded.status();
    ASSERT_GT(decoded.status().message().size(), 20u) << seed << decoded.status();
    ++refused;
  }
  RecordProperty("refused", refused);
  EXPECT_GT(refused, 9'000) << unchanged << " were not corrupted at all";
}

TEST(CheckpointTest, LoadNamesTheFile) {
  TemporaryDirectory directory;
  const std::string path = directory.File("c.safetensors");
  EXPECT_EQ(LoadCheckpoint(path).status().code(), absl::StatusCode::kNotFound);
  const Checkpoint checkpoint = CheckpointAt(7);
  std::string bytes = EncodeCheckpoint(checkpoint).value();
  ASSERT_EQ(WriteFileAtomically(path, bytes), absl::OkStatus());
  const auto loaded = LoadCheckpoint(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*loaded, checkpoint);
  bytes.back() ^= 1;
  ASSERT_EQ(WriteFileAtomically(path, bytes), absl::OkStatus());
  const absl::Status status = LoadCheckpoint(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path + ": it is damaged"));
}

TEST(CheckpointTest, WeightsOfACheckpoint) {
  TemporaryDirectory directory;
  const std::string path = directory.File("c.safetensors");
  const Checkpoint checkpoint = CheckpointAt(7);
  std::string bytes = EncodeCheckpoint(checkpoint).value();
  ASSERT_EQ(WriteFileAtomically(path, bytes), absl::OkStatus());
  auto weights = LoadWeights(path);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->model, checkpoint.recipe.model);
  EXPECT_EQ(weights->parameters, checkpoint.state.parameters);
  // Saved anew by a program that drops metadata: still the weights.
  std::vector<TensorView> views;
  const Safetensors file = DecodeSafetensors(bytes).value();
  for (const Tensor& tensor : file.tensors) {
    views.push_back({tensor.name, tensor.shape, tensor.values});
  }
  ASSERT_EQ(WriteFileAtomically(path, EncodeSafetensors(views)), absl::OkStatus());
  weights = LoadWeights(path);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->parameters, checkpoint.state.parameters);
  // Damaged: not evaluated as if nothing were.
  bytes.back() ^= 1;
  ASSERT_EQ(WriteFileAtomically(path, bytes), absl::OkStatus());
  EXPECT_EQ(LoadWeights(path).status().code(), absl::StatusCode::kDataLoss);
}

TEST(CompatibleTest, TheSameTrainingGoesOn) {
  TrainingRecipe recipe = SmallRecipe();
  EXPECT_EQ(CheckCompatible(CheckpointAt(7), recipe), absl::OkStatus());
  recipe.epochs = 100;
  EXPECT_EQ(CheckCompatible(CheckpointAt(30), recipe), absl::OkStatus());
  recipe.epochs = 2;
  EXPECT_EQ(CheckCompatible(CheckpointAt(10), recipe), absl::OkStatus());
  const absl::Status status = CheckCompatible(CheckpointAt(11), recipe);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("at step 1 of epoch 2 (from 0), beyond the end of a run of 2 epochs"));
}

TEST(CompatibleTest, DifferencesAreRefusedWithBothValues) {
  const auto refused = [](void (*change)(TrainingRecipe*), const std::string& part) {
    TrainingRecipe recipe = SmallRecipe();
    change(&recipe);
    const absl::Status status = CheckCompatible(CheckpointAt(7), recipe);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(part), HasSubstr("--resume never")));
  };
  refused([](TrainingRecipe* r) { r->data_digest = "0ff"; },
          "data set: da7a in the checkpoint, 0ff in this run");
  refused([](TrainingRecipe* r) { r->num_train_samples = 61; }, "training samples: 60 in the");
  refused([](TrainingRecipe* r) { r->num_test_samples = 11; }, "test samples: 10 in the");
  refused(
      [](TrainingRecipe* r) {
        r->model.layers = {5, 2};
      },
      "layers: 5,3,2 in the checkpoint, 5");
  refused([](TrainingRecipe* r) { r->optimizer.kind = OptimizerSpec::Kind::kSgd; },
          "epsilon 1e-07) in the checkpoint, sgd at 0.001 in this run");
  refused([](TrainingRecipe* r) { r->optimizer.learning_rate = 0.002f; },
          "optimizer: adam at 0.001 (beta1 0.9, beta2 0.999, epsilon 1e-07) in the checkpoint, "
          "adam at 0.002 ");
  refused([](TrainingRecipe* r) { r->seed = 2; },
          "seed: 18446744073709551615 in the checkpoint, 2");
  refused([](TrainingRecipe* r) { r->global_batch = 32; },
          "global batch: 16 in the checkpoint, 32");
  refused([](TrainingRecipe* r) { r->reproducible = false; },
          "reproducible: true in the checkpoint, false in this run");
  refused(
      [](TrainingRecipe* r) {
        r->seed = 2;
        r->data_digest = "0ff";
      },
      "0ff in this run; seed: ");
}

}  // namespace
}  // namespace ringmaster
