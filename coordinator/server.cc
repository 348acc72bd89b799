#include "coordinator/server.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/credentials.h"
#include "common/identity.h"
#include "coordinator/service.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"

namespace ringmaster {
namespace {

// Of one worker process: its session, its data, its state, and keys it waits for.
constexpr int kMaxStreamsPerConnection = 256;
// Buffers of all connections together, and the threads of gRPC.
constexpr size_t kMemoryBytes = size_t{1} << 30;
constexpr int kMaxThreads = 64;
constexpr int kHandshakeMs = 5000;

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "[::]"; }

}  // namespace

class Server::Impl {
 public:
  Impl(Run* run, std::shared_ptr<const DatasetFiles> files)
      : training_(run, std::move(files)), key_value_(run) {}

  ~Impl() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }

  // Returns the port, or 0.
  int Listen(const std::string& listen) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(listen, MakeServerCredentials(listen), &port);
    builder.RegisterService(&training_);
    builder.RegisterService(&key_value_);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    // Two coordinators on one port would share the workers between them.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMs);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               kAllowedPingIntervalMs);
    // For health and reflection only: the services above use the callback API.
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 1);
    grpc::ResourceQuota quota("ringmaster");
    quota.Resize(kMemoryBytes).SetMaxThreads(kMaxThreads);
    builder.SetResourceQuota(quota);
    server_ = builder.BuildAndStart();
    return server_ == nullptr ? 0 : port;
  }

 private:
  TrainingService training_;
  KeyValueService key_value_;
  std::unique_ptr<grpc::Server> server_;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

namespace {

absl::Status CannotListen(const std::string& listen) {
  return absl::InvalidArgumentError(
      absl::StrCat("cannot listen on ", listen,
                   ": the port is taken, or the address is not of this machine. Choose another "
                   "with --listen HOST:PORT (port 0 picks a free one)"));
}

}  // namespace

absl::Status Server::CheckAddress(const std::string& listen) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(listen, MakeServerCredentials(listen), &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  return server != nullptr && port != 0 ? absl::OkStatus() : CannotListen(listen);
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const std::string& listen, Run* run,
                                                      std::shared_ptr<const DatasetFiles> files) {
  auto impl = std::make_unique<Impl>(run, std::move(files));
  const int port = impl->Listen(listen);
  if (port == 0) return CannotListen(listen);
  const std::string host = listen.substr(0, listen.rfind(':'));
  std::unique_ptr<Server> server(new Server(std::move(impl)));
  const std::string local = host == "[::]" ? "[::1]" : "127.0.0.1";
  server->address_ = absl::StrCat(IsWildcard(host) ? local : host, ":", port);
  server->wildcard_ = IsWildcard(host);
  return server;
}

std::string Server::public_address() const {
  if (!wildcard_) return address_;
  return absl::StrCat(HostName(), address_.substr(address_.rfind(':')));
}

}  // namespace ringmaster
