#include "coordinator/service.h"

#include <atomic>
#include <optional>
#include <utility>

#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "coordinator/dataset_chunker.h"
#include "coordinator/session_stream.h"

namespace ringmaster {
namespace {

// Streams what `Chunker` cuts, then finishes. Deletes itself.
template <typename Chunk, typename Chunker>
class ChunkWriter final : public grpc::ServerWriteReactor<Chunk> {
 public:
  explicit ChunkWriter(Chunker chunker) : chunker_(std::move(chunker)) { WriteNext(); }

  void OnWriteDone(bool ok) override {
    if (ok) return WriteNext();
    this->Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the receiver has gone"));
  }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    if (chunker_.Next(&chunk_)) return this->StartWrite(&chunk_);
    this->Finish(grpc::Status::OK);
  }

  Chunker chunker_;
  Chunk chunk_;
};

// Answers with an error at once.
template <typename Chunk>
class WriteError final : public grpc::ServerWriteReactor<Chunk> {
 public:
  explicit WriteError(const absl::Status& status) { this->Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

// Waits for a state, then streams it. Deletes itself.
class StateSender final : public grpc::ServerWriteReactor<StateChunk> {
 public:
  StateSender(Run* run, const GetStateRequest& request) : run_(run), digest_(request.digest()) {
    ticket_ = run_->keys().Get(request.generation(), Run::StateKey(digest_),
                               [this](const absl::StatusOr<std::string>& come) {
                                 come.ok() ? Begin() : Finish(ToGrpc(come.status()));
                               });
  }

  void OnWriteDone(bool ok) override {
    if (ok) return WriteNext();
    Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the receiver has gone"));
  }
  // Comes after the constructor: gRPC does not know this object before.
  void OnCancel() override { run_->keys().Cancel(ticket_); }
  void OnDone() override { delete this; }

 private:
  void Begin() {
    StoredStatePtr state = run_->states().Find(digest_);
    if (state == nullptr) {
      Finish(
          grpc::Status(grpc::StatusCode::NOT_FOUND, "the state has been replaced by newer ones"));
      return;
    }
    chunker_.emplace(run_->run_id(), std::move(state));
    WriteNext();
  }

  void WriteNext() {
    if (chunker_->Next(&chunk_)) return StartWrite(&chunk_);
    Finish(grpc::Status::OK);
  }

  Run* const run_;
  const std::string digest_;
  KeyValueTable::Ticket ticket_ = 0;
  std::optional<StateChunker> chunker_;
  StateChunk chunk_;
};

// Puts a state together and hands it to the run. Keeps itself alive until gRPC is through with it;
// the run's reply may come later still.
class StateReader final : public grpc::ServerReadReactor<StateChunk>,
                          public std::enable_shared_from_this<StateReader> {
 public:
  static StateReader* Start(Run* run) {
    std::shared_ptr<StateReader> reader(new StateReader(run));
    reader->self_ = reader;
    reader->StartRead(&reader->chunk_);
    return reader.get();
  }

  void OnReadDone(bool ok) override {
    const absl::Status status = ok ? Take() : HandOver();
    if (!status.ok()) {
      Conclude(status);
    } else if (ok) {
      StartRead(&chunk_);
    }
  }
  void OnCancel() override { Conclude(absl::CancelledError("the sender has gone")); }
  void OnDone() override { self_.reset(); }

 private:
  explicit StateReader(Run* run) : run_(run), assembler_(run->options().model.num_parameters()) {}

  absl::Status Take() {
    if (!std::exchange(started_, true)) {
      RM_RETURN_IF_ERROR(run_->CheckGeneration(chunk_.run_id(), chunk_.generation()));
    }
    return assembler_.Append(chunk_);
  }

  absl::Status HandOver() {
    RM_ASSIGN_OR_RETURN(StoredStatePtr state, assembler_.Finish());
    run_->OnState(std::move(state),
                  [self = self_](const absl::Status& status) { self->Conclude(status); });
    return absl::OkStatus();
  }

  void Conclude(const absl::Status& status) {
    if (!finished_.exchange(true)) Finish(ToGrpc(status));
  }

  Run* const run_;
  std::shared_ptr<StateReader> self_;
  StateAssembler assembler_;
  StateChunk chunk_;
  bool started_ = false;
  std::atomic<bool> finished_{false};
};

// Waits for a key. Deletes itself.
class KeyWaiter final : public grpc::ServerUnaryReactor {
 public:
  KeyWaiter(Run* run, const GetRequest& request, GetReply* reply) : run_(run) {
    ticket_ = run_->keys().Get(request.generation(), request.key(),
                               [this, reply](absl::StatusOr<std::string> value) {
                                 if (value.ok()) reply->set_value(*std::move(value));
                                 Finish(ToGrpc(value.status()));
                               });
  }

  // Comes after the constructor: gRPC does not know this object before.
  void OnCancel() override { run_->keys().Cancel(ticket_); }
  void OnDone() override { delete this; }

 private:
  Run* const run_;
  KeyValueTable::Ticket ticket_ = 0;
};

grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

}  // namespace

TrainingService::TrainingService(Run* run, std::shared_ptr<const DatasetFiles> files)
    : run_(run), files_(std::move(files)) {}

grpc::ServerBidiReactor<WorkerMessage, CoordinatorMessage>* TrainingService::Session(
    grpc::CallbackServerContext* /*context*/) {
  return SessionStream::Start(run_);
}

grpc::ServerWriteReactor<DatasetChunk>* TrainingService::GetDataset(
    grpc::CallbackServerContext* /*context*/, const GetDatasetRequest* request) {
  const absl::Status status = run_->CheckRun(request->run_id());
  if (!status.ok()) return new WriteError<DatasetChunk>(status);
  return new ChunkWriter<DatasetChunk, DatasetChunker>(DatasetChunker(
      run_->run_id(), run_->options().membership.data_digest, request->have_digest(), files_));
}

grpc::ServerReadReactor<StateChunk>* TrainingService::PutState(
    grpc::CallbackServerContext* /*context*/, PutStateReply* /*reply*/) {
  return StateReader::Start(run_);
}

grpc::ServerWriteReactor<StateChunk>* TrainingService::GetState(
    grpc::CallbackServerContext* /*context*/, const GetStateRequest* request) {
  const absl::Status status = run_->CheckGeneration(request->run_id(), request->generation());
  if (!status.ok()) return new WriteError<StateChunk>(status);
  return new StateSender(run_, *request);
}

grpc::ServerUnaryReactor* TrainingService::GetStatus(grpc::CallbackServerContext* context,
                                                     const GetStatusRequest* /*request*/,
                                                     RunStatus* status) {
  *status = run_->status();
  return Answer(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* KeyValueService::Set(grpc::CallbackServerContext* context,
                                               const SetRequest* request, SetReply* /*reply*/) {
  absl::Status status = run_->CheckRun(request->run_id());
  if (status.ok()) {
    status = run_->keys().Set(request->generation(), request->key(), request->value());
  }
  return Answer(context, status);
}

grpc::ServerUnaryReactor* KeyValueService::Get(grpc::CallbackServerContext* context,
                                               const GetRequest* request, GetReply* reply) {
  const absl::Status status = run_->CheckRun(request->run_id());
  if (!status.ok()) return Answer(context, status);
  return new KeyWaiter(run_, *request, reply);
}

}  // namespace ringmaster
