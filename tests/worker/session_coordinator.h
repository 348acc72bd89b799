// A coordinator that does what a test says: each call is handed to a function of the test's own.
//
// Thread safety: set the functions before the first call.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "proto/training.grpc.pb.h"

namespace ringmaster {

class ScriptedCoordinator : public Training::Service {
 public:
  using Stream = grpc::ServerReaderWriter<CoordinatorMessage, WorkerMessage>;

  std::function<grpc::Status(Stream*)> session;
  std::function<grpc::Status(const GetDatasetRequest&, grpc::ServerWriter<DatasetChunk>*)> dataset;
  std::function<grpc::Status(grpc::ServerReader<StateChunk>*)> put_state;
  std::function<grpc::Status(const GetStateRequest&, grpc::ServerWriter<StateChunk>*)> get_state;

  // Listens on a free port of loopback.
  void Start() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", MakeServerCredentials("127.0.0.1:0"), &port);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               kAllowedPingIntervalMs);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  void Stop() { server_->Shutdown(std::chrono::system_clock::now()); }
  const std::string& address() const { return address_; }

 private:
  grpc::Status Session(grpc::ServerContext*, Stream* stream) override { return session(stream); }
  grpc::Status GetDataset(grpc::ServerContext*, const GetDatasetRequest* request,
                          grpc::ServerWriter<DatasetChunk>* writer) override {
    return dataset(*request, writer);
  }
  grpc::Status PutState(grpc::ServerContext*, grpc::ServerReader<StateChunk>* reader,
                        PutStateReply*) override {
    return put_state(reader);
  }
  grpc::Status GetState(grpc::ServerContext*, const GetStateRequest* request,
                        grpc::ServerWriter<StateChunk>* writer) override {
    return get_state(*request, writer);
  }

  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace ringmaster
