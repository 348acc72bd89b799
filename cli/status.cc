#include "cli/status.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/text.h"
#include "common/credentials.h"
#include "common/logging.h"
#include "proto/training.grpc.pb.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(5);

std::string Line(const std::string& name, const std::string& value) {
  return value.empty() ? "" : absl::StrFormat("%-14s %s\n", name, value);
}

std::string PhaseName(RunStatus::Phase phase) {
  switch (phase) {
    case RunStatus::WAITING:
      return "waiting";
    case RunStatus::TRAINING:
      return "training";
    case RunStatus::RECOVERING:
      return "recovering";
    case RunStatus::FINISHED:
      return "finished";
    case RunStatus::FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

}  // namespace

std::string FormatStatus(const RunStatus& status) {
  std::string text = Line("run", status.run_id());
  text += Line("directory", status.run_dir());
  text += Line("phase", PhaseName(status.phase()));
  text += Line("reason", status.reason());
  if (!status.coordinator_host().empty()) {
    text += Line("coordinator", absl::StrFormat("%s, pid %d", status.coordinator_host(),
                                                status.coordinator_pid()));
  }
  if (status.generation() > 0) {
    text += Line("generation", absl::StrFormat("%d", status.generation()));
    text += Line("failures", absl::StrFormat("%d survived", status.failures_survived()));
    const uint32_t epochs = status.config().epochs();
    const uint32_t epoch = std::min(status.position().epoch() + 1, epochs);  // past it when done
    text += Line("epoch",
                 absl::StrFormat("%d of %d, step %d", epoch, epochs, status.position().step()));
    text += Line("samples", WithCommas(status.samples_committed()) + " of " +
                                WithCommas(status.samples_expected()));
    text += Line("training", absl::StrFormat("loss %.4f, accuracy %.2f %%", status.train_loss(),
                                             100 * status.train_accuracy()));
  }
  if (status.test_accuracy() > 0) {
    text += Line("test", absl::StrFormat("loss %.4f, accuracy %.2f %%", status.test_loss(),
                                         100 * status.test_accuracy()));
  }
  for (int rank = 0; rank < status.members_size(); ++rank) {
    const Member& member = status.members(rank);
    text += Line(absl::StrFormat("rank %d", rank),
                 absl::StrFormat("%s, pid %d, %s", member.host(), member.pid(),
                                 member.device_description()));
  }
  return text;
}

int RunStatusCommand(const Settings& settings) {
  const auto stub = Training::NewStub(MakeChannel(settings.coordinator));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
  RunStatus status;
  const grpc::Status result = stub->GetStatus(&context, GetStatusRequest(), &status);
  if (!result.ok()) {
    spdlog::error("no answer from the coordinator at {}: {}. Is it still running?",
                  settings.coordinator, result.error_message());
    return 1;
  }
  std::fputs(FormatStatus(status).c_str(), stdout);
  return 0;
}

}  // namespace ringmaster
