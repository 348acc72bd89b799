#include "worker/key_value_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/grpc_status.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kSetTimeout = absl::Seconds(30);

}  // namespace

KeyValueClient::KeyValueClient(KeyValue::StubInterface* stub, std::string run_id,
                               uint64_t generation, Interrupt* interrupt)
    : stub_(stub), run_id_(std::move(run_id)), generation_(generation), interrupt_(interrupt) {}

absl::Status KeyValueClient::Set(const std::string& key, const std::string& value) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kSetTimeout));
  const Interrupt::Scope scope(interrupt_, [&context] { context.TryCancel(); });
  SetRequest request;
  request.set_run_id(run_id_);
  request.set_generation(generation_);
  request.set_key(key);
  request.set_value(value);
  SetReply reply;
  return FromGrpc(stub_->Set(&context, request, &reply));
}

absl::StatusOr<std::string> KeyValueClient::Get(const std::string& key, absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const Interrupt::Scope scope(interrupt_, [&context] { context.TryCancel(); });
  GetRequest request;
  request.set_run_id(run_id_);
  request.set_generation(generation_);
  request.set_key(key);
  GetReply reply;
  const grpc::Status status = stub_->Get(&context, request, &reply);
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return absl::DeadlineExceededError(
        absl::StrCat("nobody set the key '", key, "' within ", absl::FormatDuration(timeout)));
  }
  if (!status.ok()) return FromGrpc(status);
  return std::move(*reply.mutable_value());
}

}  // namespace ringmaster
