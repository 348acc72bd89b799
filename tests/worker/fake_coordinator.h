// FakeCoordinator: a coordinator without a mind of its own, over real gRPC. It keeps what workers
// say and hand in, acknowledges records that come in order, and does what a test tells it: assign,
// abort, regroup, put out, die and come back on the same port.
//
// Thread safety: safe from several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/mutex.h"
#include "grpcpp/server.h"
#include "proto/training.grpc.pb.h"

namespace ringmaster {

class FakeCoordinator {
 public:
  // What is known of a process, by incarnation.
  struct Worker {
    Hello hello;
    uint64_t generation = 0;  // of the last Hello's envelope
    bool connected = false;
    bool recognised = false;
    std::optional<Standing> standing;  // since the last assignment
    std::optional<Finished> finished;  // over the last connection
    std::optional<Leaving> leaving;
    std::optional<Failure> failure;
    int connections = 0;
  };

  explicit FakeCoordinator(TrainingConfig config);
  ~FakeCoordinator();

  // Listens on loopback, on the port it had before if there was one.
  void Start();
  // Dies: every stream breaks.
  void Stop();
  const std::string& address() const { return address_; }

  // Waits until `done` (called with the lock held; may look at everything below) or fails the test
  // after a minute. Returns whether it came about.
  bool Await(const char* what, const std::function<bool()>& done);

  // In these, with Await's lock held or not needed because nothing goes on:
  std::map<uint64_t, Worker> workers;                     // by incarnation
  std::vector<GlobalRecord> records;                      // in order, each once
  std::map<std::string, std::vector<StateChunk>> states;  // by digest, as they came
  std::vector<Position> states_put;                       // in order
  uint64_t sent_again = 0;                                // records that were here already
  int checkpoint_every_steps = 0;                         // for the Welcomes to come

  // Incarnations of the connected workers, by local rank.
  std::vector<uint64_t> Connected();
  // Waits until `count` processes are connected and stand; their incarnations by local rank.
  std::vector<uint64_t> AwaitStanding(size_t count);
  Worker Of(uint64_t incarnation);
  size_t RecordCount();

  // A new generation of these that goes on with what the most advanced of them says it holds; who
  // holds that comes first, otherwise ranks are in the order given.
  void Assign(std::vector<uint64_t> members);
  void Abort(const std::string& reason);
  void Regroup(uint64_t incarnation);
  void PutOut(uint64_t incarnation);
  void End(int exit_code);

 private:
  class Service;
  using Stream = grpc::ServerReaderWriter<CoordinatorMessage, WorkerMessage>;

  grpc::Status Serve(Stream* stream);
  void Take(uint64_t incarnation, const WorkerMessage& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeRecords(const StepRecords& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Write(uint64_t incarnation, CoordinatorMessage message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t IndexOf(uint32_t epoch, uint32_t step, bool evaluation) const;

  const TrainingConfig config_;
  std::string address_;
  int port_ = 0;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;

  Mutex mutex_;
  CondVar changed_;
  uint64_t generation_ = 0;
  bool aborted_ = false;
  bool stopping_ = false;
  std::vector<uint64_t> members_;
  std::map<uint64_t, Stream*> streams_;
  std::map<uint64_t, bool> put_out_;
  std::map<std::string, std::string> keys_;  // "generation/key"
};

}  // namespace ringmaster
