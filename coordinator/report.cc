#include "coordinator/report.h"

#include <charconv>
#include <cstdlib>

#include "nlohmann/json.hpp"

namespace ringmaster {
namespace {

using Json = nlohmann::ordered_json;

// The double whose shortest decimal form is that of `value`: 0.001f is told as 0.001, not as
// 0.0010000000474974513.
double AsWritten(float value) {
  char text[32] = "";
  std::to_chars(text, text + sizeof text - 1, value);
  return std::strtod(text, nullptr);
}

const char* OutcomeName(RunOutcome outcome) {
  switch (outcome) {
    case RunOutcome::kSuccess:
      return "success";
    case RunOutcome::kFailed:
      return "failed";
    case RunOutcome::kInterrupted:
      return "interrupted";
  }
  return "failed";
}

std::string TimeText(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", time, absl::UTCTimeZone());
}

Json ConfigJson(const TrainingConfig& config) {
  Json json;
  json["layers"] = std::vector<uint32_t>(config.layers().begin(), config.layers().end());
  json["optimizer"] = config.optimizer() == SGD ? "sgd" : "adam";
  json["learning_rate"] = AsWritten(config.learning_rate());
  if (config.optimizer() != SGD) {
    json["beta1"] = AsWritten(config.beta1());
    json["beta2"] = AsWritten(config.beta2());
    json["epsilon"] = AsWritten(config.epsilon());
  }
  json["seed"] = config.seed();
  json["global_batch"] = config.global_batch();
  json["epochs"] = config.epochs();
  json["num_train_samples"] = config.num_train_samples();
  json["num_test_samples"] = config.num_test_samples();
  json["data_digest"] = config.data_digest();
  json["reproducible"] = config.reproducible();
  return json;
}

// By epoch, finished ones only; the names are those of Keras's History.
Json HistoryJson(const RunHistory& history) {
  Json json = {{"loss", Json::array()},
               {"accuracy", Json::array()},
               {"val_loss", Json::array()},
               {"val_accuracy", Json::array()}};
  for (const EpochSummary& epoch : history.epochs()) {
    if (!epoch.evaluated) continue;
    json["loss"].push_back(epoch.loss);
    json["accuracy"].push_back(epoch.accuracy);
    json["val_loss"].push_back(epoch.val_loss);
    json["val_accuracy"].push_back(epoch.val_accuracy);
  }
  return json;
}

Json EpochSeconds(const RunHistory& history) {
  Json seconds = Json::array();
  for (const EpochSummary& epoch : history.epochs()) {
    if (epoch.seconds > 0) seconds.push_back(epoch.seconds);
  }
  return seconds;
}

Json MembersJson(const RunReport& report) {
  Json members = Json::array();
  for (const Member& member : report.members) {
    members.push_back({{"rank", members.size()},
                       {"host", member.host()},
                       {"pid", member.pid()},
                       {"device", member.device_description()}});
  }
  return members;
}

std::string Text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string BackendName(DeviceKind device) {
  switch (device) {
    case CPU:
      return "cpu";
    case CUDA:
      return "cuda";
    default:
      return "none";
  }
}

std::string ToJson(const TrainingConfig& config) { return Text(ConfigJson(config)); }

std::string ToJson(const RunReport& report) {
  const EpochSummary* tested = report.history.last_evaluated();
  Json json;
  json["outcome"] = OutcomeName(report.outcome);
  json["reason"] = report.reason;
  json["test_accuracy"] = tested == nullptr ? Json() : Json(tested->val_accuracy);
  json["test_loss"] = tested == nullptr ? Json() : Json(tested->val_loss);
  json["samples_committed"] = report.samples_committed;
  json["samples_expected"] = report.samples_expected;
  json["lost_samples"] = report.lost_samples;
  json["doubled_samples"] = report.doubled_samples;
  json["failures_survived"] = report.failures_survived;
  json["recoveries_seconds"] = report.recoveries_seconds;
  json["coordinator_starts"] = report.coordinator_starts;
  json["records_redone"] = report.records_redone;
  json["steps"] = report.history.steps();
  json["generations"] = report.generations;
  json["world_size"] = report.world_size;
  json["backend"] = BackendName(report.device);
  json["epoch_seconds"] = EpochSeconds(report.history);
  json["samples_per_second"] = report.history.samples_per_second();
  json["weights_sha256"] = report.weights_sha256.empty() ? Json() : Json(report.weights_sha256);
  json["data_digest"] = report.config.data_digest();
  json["seed"] = report.config.seed();
  json["history"] = HistoryJson(report.history);
  json["run_id"] = report.run_id;
  json["run_dir"] = report.run_dir;
  json["version"] = report.version;
  json["started"] = TimeText(report.started);
  json["ended"] = TimeText(report.ended);
  json["wall_seconds"] = absl::ToDoubleSeconds(report.ended - report.started);
  json["members"] = MembersJson(report);
  json["config"] = ConfigJson(report.config);
  return Text(json);
}

}  // namespace ringmaster
