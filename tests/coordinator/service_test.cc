// The services over loopback, spoken to with plain stubs: what is answered to right and wrong
// calls.

#include "coordinator/service.h"

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/credentials.h"
#include "common/identity.h"
#include "common/sha256.h"
#include "common/subprocess.h"
#include "coordinator/server.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "tests/coordinator/planned_records.h"
#include "tests/coordinator/run_fixture.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

constexpr auto kDeadline = std::chrono::seconds(20);

std::shared_ptr<const DatasetFiles> MakeFiles() {
  DatasetFiles files;
  for (size_t i = 0; i < kDatasetFiles; ++i) {
    files[i].name = kDatasetFileNames[i];
    files[i].bytes = std::string(700'000 * (i + 1) + i, static_cast<char>('a' + i));
    files[i].sha256 = Sha256Hex(files[i].bytes);
  }
  return std::make_shared<const DatasetFiles>(std::move(files));
}

void SetDeadline(grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + kDeadline);
}

// One worker's stream, with blocking calls.
class Client {
 public:
  explicit Client(Training::Stub* stub) {
    SetDeadline(&context_);
    stream_ = stub->Session(&context_);
  }
  ~Client() {
    if (!finished_) context_.TryCancel();
    if (!finished_) stream_->Finish();
  }

  void Send(WorkerMessage message, const std::string& run_id = "run-1", uint64_t generation = 1) {
    message.set_run_id(run_id);
    message.set_generation(generation);
    stream_->Write(message);
  }
  // The next message of `kind`; those of other kinds are passed over.
  CoordinatorMessage Read(CoordinatorMessage::KindCase kind) {
    CoordinatorMessage message;
    while (stream_->Read(&message)) {
      if (message.kind_case() == kind) return message;
    }
    finished_ = true;
    const grpc::Status status = stream_->Finish();
    ADD_FAILURE() << "the stream ended: " << status.error_message();
    return CoordinatorMessage();
  }
  // Reads until `records` are acknowledged.
  void ReadAck(uint64_t records) {
    while (!finished_ && Read(CoordinatorMessage::kAck).ack().records_received() < records) {
    }
  }
  // Reads to the end.
  grpc::Status Finish() {
    CoordinatorMessage message;
    while (stream_->Read(&message)) {
    }
    finished_ = true;
    return stream_->Finish();
  }
  grpc::Status HalfClose() {
    stream_->WritesDone();
    return Finish();
  }
  void Cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<WorkerMessage, CoordinatorMessage>> stream_;
  bool finished_ = false;
};

class ServiceTest : public ::testing::Test {
 protected:
  // A run of two processes, led by a thread of the test's.
  ServiceTest()
      : run_(SmallRunOptions({2, 2}), SmallRunState(absl::Now()),
             JournalOf(SmallRunState(absl::Now())), nullptr, absl::Now()) {
    auto server = Server::Start("127.0.0.1:0", &run_, files_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = MakeChannel(server_->address());
    training_ = Training::NewStub(channel_);
    key_value_ = KeyValue::NewStub(channel_);
    leader_ = std::thread([this] {
      while (!leave_ && !(exit_code_ = run_.Advance(absl::Now()))) {
        WaitReadable({run_.wake_fd()}, absl::Milliseconds(20));
      }
    });
  }
  ~ServiceTest() override {
    leave_ = true;
    leader_.join();
    server_.reset();
  }

  // Both processes join; returns when they have their places.
  void Train() {
    for (uint32_t i = 0; i < 2; ++i) {
      clients_.push_back(std::make_unique<Client>(training_.get()));
      clients_[i]->Send(HelloMessage(i, 2), "", 0);
      clients_[i]->Read(CoordinatorMessage::kWelcome);
      WorkerMessage standing;
      standing.mutable_standing();
      clients_[i]->Send(standing, "run-1", 0);
    }
    for (auto& client : clients_) client->Read(CoordinatorMessage::kAssignment);
  }

  static void Expect(const grpc::Status& status, grpc::StatusCode code,
                     const std::string& message = "") {
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(message));
  }

  WorkerMessage Records(size_t first, size_t end) const {
    WorkerMessage message;
    for (size_t i = first; i < end; ++i) *message.mutable_records()->add_records() = records_[i];
    return message;
  }

  grpc::Status Set(const std::string& run_id, uint64_t generation, const std::string& key,
                   const std::string& value) {
    grpc::ClientContext context;
    SetDeadline(&context);
    SetRequest request;
    request.set_run_id(run_id);
    request.set_generation(generation);
    request.set_key(key);
    request.set_value(value);
    SetReply reply;
    return key_value_->Set(&context, request, &reply);
  }

  grpc::Status Get(const std::string& run_id, uint64_t generation, const std::string& key,
                   std::string* value, std::chrono::milliseconds timeout = kDeadline) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    GetRequest request;
    request.set_run_id(run_id);
    request.set_generation(generation);
    request.set_key(key);
    GetReply reply;
    const grpc::Status status = key_value_->Get(&context, request, &reply);
    *value = reply.value();
    return status;
  }

  grpc::Status PutState(StoredState stored, size_t cut = 0) {
    grpc::ClientContext context;
    SetDeadline(&context);
    PutStateReply reply;
    const auto writer = training_->PutState(&context, &reply);
    StateChunker chunker("run-1", std::make_shared<const StoredState>(std::move(stored)));
    StateChunk chunk;
    while (chunker.Next(&chunk)) {
      if (cut > 0) chunk.mutable_data()->resize(cut);
      if (!writer->Write(chunk)) break;
    }
    writer->WritesDone();
    return writer->Finish();
  }

  grpc::Status GetState(const std::string& run_id, uint64_t generation, const std::string& digest,
                        TrainState* state, std::chrono::milliseconds timeout = kDeadline) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    GetStateRequest request;
    request.set_digest(digest);
    request.set_run_id(run_id);
    request.set_generation(generation);
    const auto reader = training_->GetState(&context, request);
    StateAssembler assembler(SmallState(0).parameters.size());
    StateChunk chunk;
    while (reader->Read(&chunk)) EXPECT_TRUE(assembler.Append(chunk).ok());
    const grpc::Status status = reader->Finish();
    if (status.ok()) *state = assembler.Finish().value()->state;
    return status;
  }

  const std::shared_ptr<const DatasetFiles> files_ = MakeFiles();
  const std::vector<GlobalRecord> records_ = PlannedRecords(SmallConfig(), 2);
  ringmaster::Run run_;  // Test has a Run of its own
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Training::Stub> training_;
  std::unique_ptr<KeyValue::Stub> key_value_;
  std::atomic<bool> leave_{false};
  std::optional<int> exit_code_;  // of leader_, which is to be joined before
  std::thread leader_;
  std::vector<std::unique_ptr<Client>> clients_;
};

// ---------------------------------------------------------------- sessions

TEST_F(ServiceTest, WholeRun) {
  Train();
  clients_[0]->Send(Records(0, 3));
  clients_[0]->ReadAck(3);
  Expect(PutState(*StoredAt(1, 3)), grpc::StatusCode::OK);
  clients_[0]->Send(Records(3, 6));
  clients_[0]->ReadAck(6);
  const StoredStatePtr last = StoredAt(1, 6);
  Expect(PutState(*last), grpc::StatusCode::OK);
  TrainState back;
  Expect(GetState("run-1", 1, last->digest, &back), grpc::StatusCode::OK);
  EXPECT_EQ(back, last->state);
  WorkerMessage finished;
  finished.mutable_finished()->set_state_digest(last->digest);
  for (auto& client : clients_) client->Send(finished);
  for (auto& client : clients_) {
    EXPECT_EQ(client->Read(CoordinatorMessage::kEnd).end().exit_code(), 0);
    Expect(client->HalfClose(), grpc::StatusCode::OK);
  }
  leader_.join();
  EXPECT_EQ(exit_code_, 0);
  leader_ = std::thread([] {});
}

TEST_F(ServiceTest, BrokenStreamIsALostWorker) {
  Train();
  clients_[1]->Cancel();
  EXPECT_THAT(clients_[0]->Read(CoordinatorMessage::kAbort).abort().reason(),
              HasSubstr("rank 1 of 2 (host a, pid 1001) was lost"));
}

TEST_F(ServiceTest, HelloOfAnotherRun) {
  Client client(training_.get());
  client.Send(HelloMessage(0, 2), "run-0", 0);
  Expect(client.Finish(), grpc::StatusCode::FAILED_PRECONDITION, "this is run run-1, not run-0");
}

TEST_F(ServiceTest, MalformedHello) {
  Client client(training_.get());
  client.Send(HelloMessage(3, 2), "", 0);
  Expect(client.Finish(), grpc::StatusCode::INVALID_ARGUMENT, "local rank 3 of 2");
}

TEST_F(ServiceTest, NoHelloAtAll) {
  Client client(training_.get());
  client.Send(Records(0, 1));
  Expect(client.Finish(), grpc::StatusCode::INVALID_ARGUMENT, "not a hello");
}

TEST_F(ServiceTest, StreamThatEndsBeforeItsHello) {
  Client client(training_.get());
  Expect(client.HalfClose(), grpc::StatusCode::OK);
}

TEST_F(ServiceTest, OtherVersion) {
  Client client(training_.get());
  WorkerMessage hello = HelloMessage(0, 2);
  hello.mutable_hello()->set_version("0.9");
  client.Send(hello, "", 0);
  Expect(client.Finish(), grpc::StatusCode::FAILED_PRECONDITION, "version");
}

TEST_F(ServiceTest, NewProcessOfTheSamePlaceEndsTheFormersStream) {
  Client first(training_.get());
  first.Send(HelloMessage(0, 2), "", 0);
  first.Read(CoordinatorMessage::kWelcome);
  Client second(training_.get());
  WorkerMessage hello = HelloMessage(0, 2);
  hello.mutable_hello()->set_incarnation(7);
  second.Send(hello, "", 0);
  second.Read(CoordinatorMessage::kWelcome);
  Expect(first.Finish(), grpc::StatusCode::ABORTED, "another process has taken its place");
}

TEST_F(ServiceTest, ReconnectionIsRecognised) {
  Train();
  Client again(training_.get());
  again.Send(HelloMessage(1, 2));
  EXPECT_TRUE(again.Read(CoordinatorMessage::kWelcome).welcome().recognised());
  Expect(clients_[1]->Finish(), grpc::StatusCode::ABORTED, "a newer stream has taken its place");
}

TEST_F(ServiceTest, SecondHelloPutsTheWorkerOut) {
  Train();
  clients_[1]->Send(HelloMessage(1, 2));
  Expect(clients_[1]->Finish(), grpc::StatusCode::FAILED_PRECONDITION, "second hello");
  EXPECT_THAT(clients_[0]->Read(CoordinatorMessage::kAbort).abort().reason(),
              HasSubstr("rank 1 of 2"));
}

TEST_F(ServiceTest, OldGenerationPutsTheWorkerOut) {
  Train();
  clients_[0]->Send(Records(0, 1), "run-1", 2);
  Expect(clients_[0]->Finish(), grpc::StatusCode::ABORTED, "generation 2");
}

TEST_F(ServiceTest, LateComer) {
  Train();
  Client client(training_.get());
  WorkerMessage hello = HelloMessage(0, 1);
  hello.mutable_hello()->set_node_id("late");
  client.Send(hello, "", 0);
  Expect(client.Finish(), grpc::StatusCode::RESOURCE_EXHAUSTED, "the run takes 2 workers");
}

TEST_F(ServiceTest, OversizeMessage) {
  Client client(training_.get());
  WorkerMessage hello = HelloMessage(0, 2);
  hello.mutable_hello()->set_host(std::string(kMaxMessageBytes, 'x'));
  client.Send(hello, "", 0);
  EXPECT_FALSE(client.Finish().ok());
}

// ---------------------------------------------------------------- data

TEST_F(ServiceTest, DatasetArrivesByteForByte) {
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = training_->GetDataset(&context, GetDatasetRequest());
  DatasetChunk chunk;
  std::string bytes;
  int chunks = 0;
  while (reader->Read(&chunk)) {
    if (chunks++ == 0) {
      EXPECT_EQ(chunk.run_id(), "run-1");
      EXPECT_EQ(chunk.data_digest(), SmallConfig().data_digest());
      ASSERT_EQ(chunk.files_size(), kDatasetFiles);
      EXPECT_EQ(chunk.files(2).sha256(), (*files_)[2].sha256);
    }
    bytes += chunk.data();
  }
  Expect(reader->Finish(), grpc::StatusCode::OK);
  std::string wanted;
  for (const DatasetFile& file : *files_) wanted += file.bytes;
  EXPECT_TRUE(bytes == wanted);
}

TEST_F(ServiceTest, DatasetThatIsThereAlready) {
  grpc::ClientContext context;
  SetDeadline(&context);
  GetDatasetRequest request;
  request.set_have_digest(SmallConfig().data_digest());
  const auto reader = training_->GetDataset(&context, request);
  DatasetChunk chunk;
  EXPECT_TRUE(reader->Read(&chunk));
  EXPECT_FALSE(reader->Read(&chunk));
  Expect(reader->Finish(), grpc::StatusCode::OK);
}

TEST_F(ServiceTest, DatasetOfAnotherRun) {
  grpc::ClientContext context;
  SetDeadline(&context);
  GetDatasetRequest request;
  request.set_run_id("run-0");
  const auto reader = training_->GetDataset(&context, request);
  DatasetChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  Expect(reader->Finish(), grpc::StatusCode::FAILED_PRECONDITION, "run-0");
}

// A receiver that goes away in the middle leaves nothing behind that the server would wait for.
TEST_F(ServiceTest, DatasetReceiverThatGoesAway) {
  grpc::ClientContext context;
  const auto reader = training_->GetDataset(&context, GetDatasetRequest());
  DatasetChunk chunk;
  EXPECT_TRUE(reader->Read(&chunk));
  context.TryCancel();
  Expect(reader->Finish(), grpc::StatusCode::CANCELLED);
}

// ---------------------------------------------------------------- state

TEST_F(ServiceTest, StateIsWaitedForUntilTheDeadline) {
  Train();
  TrainState state;
  const std::string digest = StoredAt(1, 3)->digest;
  Expect(GetState("run-1", 1, digest, &state, std::chrono::milliseconds(50)),
         grpc::StatusCode::DEADLINE_EXCEEDED);
  Expect(GetState("run-1", 2, digest, &state), grpc::StatusCode::FAILED_PRECONDITION);
  Expect(GetState("run-0", 1, digest, &state), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(ServiceTest, StateIsWaitedForUntilItComes) {
  Train();
  const StoredStatePtr stored = StoredAt(1, 3);
  std::thread sender([&] { Expect(PutState(*stored), grpc::StatusCode::OK); });
  TrainState state;
  Expect(GetState("run-1", 1, stored->digest, &state), grpc::StatusCode::OK);
  sender.join();
  EXPECT_EQ(state, stored->state);
}

TEST_F(ServiceTest, StateIsWaitedForUntilTheGenerationEnds) {
  Train();
  std::thread ender([this] { clients_[1]->Cancel(); });
  TrainState state;
  Expect(GetState("run-1", 1, "0123", &state), grpc::StatusCode::FAILED_PRECONDITION);
  ender.join();
}

TEST_F(ServiceTest, StateThatWasReplaced) {
  Train();
  clients_[0]->Send(Records(0, 6));
  clients_[0]->ReadAck(6);
  for (const uint64_t position : {1, 2, 4}) {
    Expect(PutState(*StoredAt(1, position)), grpc::StatusCode::OK);
  }
  TrainState state;
  Expect(GetState("run-1", 1, StoredAt(1, 1)->digest, &state), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, StateThatIsWrong) {
  Train();
  clients_[0]->Send(Records(0, 3));
  clients_[0]->ReadAck(3);
  Expect(PutState(*StoredAt(2, 3)), grpc::StatusCode::FAILED_PRECONDITION);
  StoredState damaged = *StoredAt(1, 3);
  damaged.digest = "0123";
  Expect(PutState(damaged), grpc::StatusCode::DATA_LOSS, "damaged");
  Expect(PutState(*StoredAt(1, 3), 3), grpc::StatusCode::INVALID_ARGUMENT, "bytes");
  StoredState nowhere = *StoredAt(1, 3);
  nowhere.position.set_epoch(2);
  Expect(PutState(nowhere), grpc::StatusCode::INVALID_ARGUMENT, "epoch 2");
  StoredState larger = *StoredAt(1, 3);
  for (auto* part :
       {&larger.state.parameters, &larger.state.first_moment, &larger.state.second_moment}) {
    part->push_back(0);
  }
  Expect(PutState(larger), grpc::StatusCode::INVALID_ARGUMENT, "another model");
  EXPECT_EQ(run_.states().newest(), nullptr);
  Expect(PutState(*StoredAt(1, 3)), grpc::StatusCode::OK);
}

// ---------------------------------------------------------------- keys

TEST_F(ServiceTest, Keys) {
  Train();
  std::string value;
  Expect(Set("run-1", 1, "k", "v"), grpc::StatusCode::OK);
  Expect(Set("run-1", 1, "k", "v"), grpc::StatusCode::OK);
  Expect(Set("run-1", 1, "k", "w"), grpc::StatusCode::ALREADY_EXISTS);
  Expect(Set("run-1", 2, "k", "v"), grpc::StatusCode::FAILED_PRECONDITION);
  Expect(Set("run-0", 1, "k", "v"), grpc::StatusCode::FAILED_PRECONDITION);
  Expect(Set("run-1", 1, "large", std::string((1 << 20) + 1, 'x')),
         grpc::StatusCode::RESOURCE_EXHAUSTED);
  Expect(Get("run-1", 1, "k", &value), grpc::StatusCode::OK);
  EXPECT_EQ(value, "v");
  Expect(Get("run-1", 2, "k", &value), grpc::StatusCode::FAILED_PRECONDITION);
  Expect(Get("run-0", 1, "k", &value), grpc::StatusCode::FAILED_PRECONDITION);
  Expect(Get("run-1", 1, "never", &value, std::chrono::milliseconds(50)),
         grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(ServiceTest, GetWaitsForSetAndForTheEnd) {
  Train();
  std::string value;
  std::thread setter([this] { Expect(Set("run-1", 1, "k", "v"), grpc::StatusCode::OK); });
  Expect(Get("run-1", 1, "k", &value), grpc::StatusCode::OK);
  setter.join();
  EXPECT_EQ(value, "v");
  std::thread ender([this] { clients_[1]->Cancel(); });
  Expect(Get("run-1", 1, "never", &value), grpc::StatusCode::FAILED_PRECONDITION);
  ender.join();
}

// ---------------------------------------------------------------- the rest

TEST_F(ServiceTest, Status) {
  Train();
  clients_[0]->Send(Records(0, 2));
  clients_[0]->ReadAck(2);
  // The acknowledgement may overtake the status.
  RunStatus status;
  do {
    grpc::ClientContext context;
    SetDeadline(&context);
    Expect(training_->GetStatus(&context, GetStatusRequest(), &status), grpc::StatusCode::OK);
  } while (status.samples_committed() == 0);
  EXPECT_EQ(status.run_id(), "run-1");
  EXPECT_EQ(status.phase(), RunStatus::TRAINING);
  EXPECT_EQ(status.generation(), 1u);
  EXPECT_EQ(status.position().step(), 2u);
  EXPECT_EQ(status.samples_committed(), 3u);
  EXPECT_EQ(status.samples_expected(), 6u);
  EXPECT_EQ(status.train_loss(), 0.5);
  ASSERT_EQ(status.members_size(), 2);
  EXPECT_EQ(status.members(1).pid(), 1001);
}

// Calls a method of a standard service, whose messages we have no code for: bytes out, bytes in.
std::string CallBytes(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                      const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  SetDeadline(&context);
  grpc::CompletionQueue queue;
  const auto finish_one = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  EXPECT_TRUE(finish_one());
  const grpc::Slice slice(request);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  EXPECT_TRUE(finish_one());
  grpc::ByteBuffer reply;
  call->Read(&reply, nullptr);
  EXPECT_TRUE(finish_one());
  grpc::Status status;
  call->Finish(&status, nullptr);
  EXPECT_TRUE(finish_one());
  EXPECT_TRUE(status.ok()) << status.error_message();
  grpc::Slice bytes;
  EXPECT_TRUE(reply.DumpToSingleSlice(&bytes).ok());
  return std::string(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
}

TEST_F(ServiceTest, HealthIsServing) {
  // HealthCheckRequest{}; HealthCheckResponse{status = SERVING}
  EXPECT_EQ(CallBytes(channel_, "/grpc.health.v1.Health/Check", ""), "\x08\x01");
}

TEST_F(ServiceTest, ReflectionListsTheServices) {
  // ServerReflectionRequest{list_services = "*"}
  const std::string reply = CallBytes(
      channel_, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a\x01*");
  for (const char* service :
       {"ringmaster.Training", "ringmaster.KeyValue", "grpc.health.v1.Health"}) {
    EXPECT_THAT(reply, HasSubstr(service));
  }
}

TEST_F(ServiceTest, PortInUse) {
  const auto second = Server::Start(server_->address(), &run_, files_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("cannot listen on ", server_->address())));
}

TEST_F(ServiceTest, AddressOfAllInterfaces) {
  const auto all = Server::Start("0.0.0.0:0", &run_, files_);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_THAT((*all)->address(), ::testing::StartsWith("127.0.0.1:"));
  EXPECT_THAT((*all)->public_address(), ::testing::StartsWith(absl::StrCat(HostName(), ":")));
}

}  // namespace
}  // namespace ringmaster
