#include "tests/worker/fake_coordinator.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/credentials.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

constexpr char kRunId[] = "run-1";
constexpr std::chrono::seconds kPatience{60};

}  // namespace

class FakeCoordinator::Service : public Training::Service, public KeyValue::Service {
 public:
  explicit Service(FakeCoordinator* owner) : owner_(owner) {}

  grpc::Status Session(grpc::ServerContext*, Stream* stream) override {
    return owner_->Serve(stream);
  }

  grpc::Status PutState(grpc::ServerContext*, grpc::ServerReader<StateChunk>* reader,
                        PutStateReply*) override {
    std::vector<StateChunk> chunks;
    StateChunk chunk;
    while (reader->Read(&chunk)) chunks.push_back(chunk);
    MutexLock lock(&owner_->mutex_);
    if (chunks.empty()) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "empty");
    if (chunks[0].generation() != owner_->generation_) return Old();
    owner_->states_put.push_back(chunks[0].position());
    owner_->states[chunks[0].digest()] = std::move(chunks);
    owner_->changed_.NotifyAll();
    return grpc::Status::OK;
  }

  grpc::Status GetState(grpc::ServerContext* context, const GetStateRequest* request,
                        grpc::ServerWriter<StateChunk>* writer) override {
    std::vector<StateChunk> chunks;
    {
      MutexLock lock(&owner_->mutex_);
      while (owner_->states.count(request->digest()) == 0) {
        if (!IsCurrent(request->generation()) || context->IsCancelled()) return Old();
        Pause();
      }
      chunks = owner_->states[request->digest()];
    }
    for (const StateChunk& chunk : chunks) writer->Write(chunk);
    return grpc::Status::OK;
  }

  grpc::Status Set(grpc::ServerContext*, const SetRequest* request, SetReply*) override {
    MutexLock lock(&owner_->mutex_);
    if (!IsCurrent(request->generation())) return Old();
    owner_->keys_[absl::StrCat(request->generation(), "/", request->key())] = request->value();
    owner_->changed_.NotifyAll();
    return grpc::Status::OK;
  }

  grpc::Status Get(grpc::ServerContext* context, const GetRequest* request,
                   GetReply* reply) override {
    const std::string key = absl::StrCat(request->generation(), "/", request->key());
    MutexLock lock(&owner_->mutex_);
    while (owner_->keys_.count(key) == 0) {
      if (!IsCurrent(request->generation()) || context->IsCancelled()) return Old();
      Pause();
    }
    reply->set_value(owner_->keys_[key]);
    return grpc::Status::OK;
  }

 private:
  static grpc::Status Old() {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "old generation");
  }
  // An abort does not end these waits: the workers must see to that themselves.
  bool IsCurrent(uint64_t generation) const {
    return generation == owner_->generation_ && !owner_->stopping_;
  }
  void Pause() ABSL_EXCLUSIVE_LOCKS_REQUIRED(owner_->mutex_) {
    owner_->changed_.WaitUntil(&owner_->mutex_,
                               std::chrono::steady_clock::now() + std::chrono::milliseconds(20));
  }

  FakeCoordinator* const owner_;
};

FakeCoordinator::FakeCoordinator(TrainingConfig config)
    : config_(std::move(config)), service_(std::make_unique<Service>(this)) {}

FakeCoordinator::~FakeCoordinator() { Stop(); }

void FakeCoordinator::Start() {
  {
    MutexLock lock(&mutex_);
    stopping_ = false;
  }
  grpc::ServerBuilder builder;
  const std::string listen = absl::StrCat("127.0.0.1:", port_);
  builder.AddListeningPort(listen, MakeServerCredentials(listen), &port_);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kAllowedPingIntervalMs);
  builder.RegisterService(static_cast<Training::Service*>(service_.get()));
  builder.RegisterService(static_cast<KeyValue::Service*>(service_.get()));
  server_ = builder.BuildAndStart();
  ASSERT_NE(server_, nullptr);
  address_ = absl::StrCat("127.0.0.1:", port_);
}

void FakeCoordinator::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
  server_.reset();
}

bool FakeCoordinator::Await(const char* what, const std::function<bool()>& done) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  MutexLock lock(&mutex_);
  while (!done()) {
    if (!changed_.WaitUntil(&mutex_, deadline) && !done()) {
      ADD_FAILURE() << "waited in vain for " << what;
      return false;
    }
  }
  return true;
}

std::vector<uint64_t> FakeCoordinator::Connected() {
  std::vector<uint64_t> found;
  for (const auto& [incarnation, worker] : workers) {
    if (worker.connected) found.push_back(incarnation);
  }
  std::sort(found.begin(), found.end(), [this](uint64_t a, uint64_t b) {
    return workers[a].hello.local_rank() < workers[b].hello.local_rank();
  });
  return found;
}

std::vector<uint64_t> FakeCoordinator::AwaitStanding(size_t count) {
  std::vector<uint64_t> found;
  Await("standings", [&] {
    found = Connected();
    return found.size() == count && std::all_of(found.begin(), found.end(), [this](uint64_t i) {
             return workers[i].standing.has_value();
           });
  });
  return found;
}

FakeCoordinator::Worker FakeCoordinator::Of(uint64_t incarnation) {
  MutexLock lock(&mutex_);
  return workers[incarnation];
}

size_t FakeCoordinator::RecordCount() {
  MutexLock lock(&mutex_);
  return records.size();
}

void FakeCoordinator::Assign(std::vector<uint64_t> members) {
  MutexLock lock(&mutex_);
  ++generation_;
  aborted_ = false;
  Standing best;
  for (const uint64_t member : members) {
    const Standing& standing = *workers[member].standing;
    const auto index = [this](const Position& p) {
      return p.phase() == Position::DONE ? UINT64_MAX
                                         : IndexOf(p.epoch(), p.step(), /*evaluation=*/false);
    };
    if (index(standing.position()) > index(best.position())) best = standing;
  }
  const auto has_it = [&](uint64_t member) {
    return workers[member].standing->state_digest() == best.state_digest();
  };
  const bool all_have_it = std::all_of(members.begin(), members.end(), has_it);
  std::stable_partition(members.begin(), members.end(), has_it);
  members_ = members;
  for (size_t rank = 0; rank < members.size(); ++rank) {
    CoordinatorMessage message;
    Assignment* assignment = message.mutable_assignment();
    assignment->set_rank(static_cast<uint32_t>(rank));
    assignment->set_world_size(static_cast<uint32_t>(members.size()));
    *assignment->mutable_position() = best.position();
    assignment->set_state_digest(best.state_digest());
    assignment->set_device(CPU);
    assignment->set_communicator_timeout_ms(60000);
    assignment->set_hand_in_state(rank == 0 && !all_have_it &&
                                  states.count(best.state_digest()) == 0);
    assignment->set_records_received(records.size());
    workers[members[rank]].standing.reset();
    workers[members[rank]].finished.reset();
    Write(members[rank], std::move(message));
  }
}

void FakeCoordinator::Abort(const std::string& reason) {
  MutexLock lock(&mutex_);
  aborted_ = true;
  for (const uint64_t member : members_) {
    CoordinatorMessage message;
    message.mutable_abort()->set_reason(reason);
    Write(member, std::move(message));
  }
}

void FakeCoordinator::Regroup(uint64_t incarnation) {
  MutexLock lock(&mutex_);
  CoordinatorMessage message;
  message.mutable_regroup()->set_reason("the test wants it");
  Write(incarnation, std::move(message));
}

void FakeCoordinator::PutOut(uint64_t incarnation) {
  MutexLock lock(&mutex_);
  put_out_[incarnation] = true;
  changed_.NotifyAll();
  while (streams_.count(incarnation) > 0) changed_.Wait(&mutex_);
}

void FakeCoordinator::End(int exit_code) {
  MutexLock lock(&mutex_);
  for (const auto& [incarnation, stream] : streams_) {
    CoordinatorMessage message;
    message.mutable_end()->set_exit_code(exit_code);
    message.mutable_end()->set_reason("the test is over");
    Write(incarnation, std::move(message));
  }
}

grpc::Status FakeCoordinator::Serve(Stream* stream) {
  WorkerMessage message;
  if (!stream->Read(&message) || !message.has_hello()) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no Hello");
  }
  const uint64_t incarnation = message.hello().incarnation();
  {
    MutexLock lock(&mutex_);
    Worker& worker = workers[incarnation];
    worker.hello = message.hello();
    worker.generation = message.generation();
    worker.connected = true;
    ++worker.connections;
    worker.finished.reset();
    const bool is_member =
        std::find(members_.begin(), members_.end(), incarnation) != members_.end();
    worker.recognised = is_member && message.generation() == generation_ && generation_ > 0;
    streams_[incarnation] = stream;
    CoordinatorMessage welcome;
    *welcome.mutable_welcome()->mutable_config() = config_;
    welcome.mutable_welcome()->set_heartbeat_interval_ms(50);
    welcome.mutable_welcome()->set_recognised(worker.recognised);
    welcome.mutable_welcome()->set_records_received(records.size());
    welcome.mutable_welcome()->set_checkpoint_every_steps(checkpoint_every_steps);
    Write(incarnation, std::move(welcome));
    changed_.NotifyAll();
  }
  // Reading goes on until the stream breaks; heartbeats come often enough to see a put-out.
  while (stream->Read(&message)) {
    MutexLock lock(&mutex_);
    if (put_out_[incarnation]) break;
    Take(incarnation, message);
    changed_.NotifyAll();
  }
  MutexLock lock(&mutex_);
  if (streams_[incarnation] == stream) {
    streams_.erase(incarnation);
    workers[incarnation].connected = false;
  }
  changed_.NotifyAll();
  if (put_out_[incarnation]) {
    return grpc::Status(grpc::StatusCode::ABORTED, "the run has gone on without you");
  }
  return grpc::Status::OK;
}

void FakeCoordinator::Take(uint64_t incarnation, const WorkerMessage& message) {
  EXPECT_EQ(message.run_id(), kRunId);
  Worker& worker = workers[incarnation];
  switch (message.kind_case()) {
    case WorkerMessage::kRecords:
      EXPECT_EQ(message.generation(), generation_);
      return TakeRecords(message.records());
    case WorkerMessage::kStanding:
      worker.standing = message.standing();
      return;
    case WorkerMessage::kFinished:
      worker.finished = message.finished();
      return;
    case WorkerMessage::kLeaving:
      worker.leaving = message.leaving();
      return;
    case WorkerMessage::kFailure:
      worker.failure = message.failure();
      return;
    default:
      return;
  }
}

void FakeCoordinator::TakeRecords(const StepRecords& batch) {
  for (const GlobalRecord& record : batch.records()) {
    const uint64_t index = IndexOf(record.epoch(), record.step(), record.evaluation());
    ASSERT_LE(index, records.size()) << "a record is missing";
    if (index < records.size()) {
      ++sent_again;
    } else {
      records.push_back(record);
    }
  }
  for (const uint64_t member : members_) {
    CoordinatorMessage message;
    message.mutable_ack()->set_records_received(records.size());
    Write(member, std::move(message));
  }
}

void FakeCoordinator::Write(uint64_t incarnation, CoordinatorMessage message) {
  const auto stream = streams_.find(incarnation);
  if (stream == streams_.end()) return;
  message.set_run_id(kRunId);
  message.set_generation(generation_);
  stream->second->Write(message);
}

uint64_t FakeCoordinator::IndexOf(uint32_t epoch, uint32_t step, bool evaluation) const {
  const uint64_t steps =
      (config_.num_train_samples() + config_.global_batch() - 1) / config_.global_batch();
  return epoch * (steps + 1) + (evaluation ? steps : step);
}

}  // namespace ringmaster
