#include "worker/state_client.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr size_t kChunkBytes = 1 << 20;

void AppendFloats(const std::vector<float>& values, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

std::vector<float> TakeFloats(const std::string& bytes, size_t part, size_t count) {
  std::vector<float> values(count);
  std::memcpy(values.data(), bytes.data() + part * count * sizeof(float), count * sizeof(float));
  return values;
}

}  // namespace

absl::Status PutState(Training::StubInterface* stub, const std::string& run_id, uint64_t generation,
                      const Position& position, const TrainState& state, absl::Duration timeout,
                      Interrupt* interrupt) {
  std::string bytes;
  for (const auto* part : {&state.parameters, &state.first_moment, &state.second_moment}) {
    AppendFloats(*part, &bytes);
  }
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const Interrupt::Scope scope(interrupt, [&context] { context.TryCancel(); });
  PutStateReply reply;
  const auto writer = stub->PutState(&context, &reply);
  StateChunk chunk;
  chunk.set_run_id(run_id);
  chunk.set_generation(generation);
  *chunk.mutable_position() = position;
  chunk.set_step(state.step);
  chunk.set_num_parameters(state.parameters.size());
  chunk.set_digest(StateSha256(state));
  for (size_t sent = 0; sent < bytes.size();) {
    const size_t size = std::min(kChunkBytes, bytes.size() - sent);
    chunk.set_data(bytes.data() + sent, size);
    if (!writer->Write(chunk)) break;  // Finish() says why
    sent += size;
    chunk.Clear();
  }
  writer->WritesDone();
  return FromGrpc(writer->Finish());
}

absl::StatusOr<TrainState> GetState(Training::StubInterface* stub, const std::string& run_id,
                                    uint64_t generation, const std::string& digest,
                                    size_t num_parameters, absl::Duration timeout,
                                    Interrupt* interrupt) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const Interrupt::Scope scope(interrupt, [&context] { context.TryCancel(); });
  GetStateRequest request;
  request.set_run_id(run_id);
  request.set_generation(generation);
  request.set_digest(digest);
  const auto reader = stub->GetState(&context, request);
  const size_t wanted = 3 * num_parameters * sizeof(float);
  std::string bytes;
  StateChunk first;
  StateChunk chunk;
  while (reader->Read(&chunk)) {
    if (bytes.empty()) first = chunk;
    bytes += chunk.data();
    if (bytes.size() > wanted) break;
  }
  if (bytes.size() > wanted) context.TryCancel();
  const absl::Status status = FromGrpc(reader->Finish());
  if (bytes.size() != wanted || first.num_parameters() != num_parameters) {
    if (bytes.size() <= wanted) RM_RETURN_IF_ERROR(status);  // else cancelled above
    return absl::InvalidArgumentError(
        absl::StrCat("the coordinator's state is of another model: wanted ", num_parameters,
                     " parameters, got ", first.num_parameters(), " in ", bytes.size(), " bytes"));
  }
  RM_RETURN_IF_ERROR(status);
  const TrainState state{TakeFloats(bytes, 0, num_parameters), TakeFloats(bytes, 1, num_parameters),
                         TakeFloats(bytes, 2, num_parameters), first.step()};
  if (const std::string got = StateSha256(state); got != digest) {
    return absl::DataLossError(
        absl::StrCat("the coordinator's state arrived damaged: digest ", got, ", wanted ", digest));
  }
  return state;
}

}  // namespace ringmaster
