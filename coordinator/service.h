// The two services of the coordinator. Each handler checks what it is asked and hands on to the
// run; none blocks, none holds a thread.
//
// Thread safety: safe from several threads, as gRPC wants it.
#pragma once

#include <memory>

#include "common/dataset.h"
#include "coordinator/run.h"
#include "proto/training.grpc.pb.h"

namespace ringmaster {

class TrainingService final : public Training::CallbackService {
 public:
  // Borrows the run, which must outlive the server. `files` is what GetDataset serves; their digest
  // is in the run's configuration.
  TrainingService(Run* run, std::shared_ptr<const DatasetFiles> files);

  grpc::ServerBidiReactor<WorkerMessage, CoordinatorMessage>* Session(
      grpc::CallbackServerContext* context) override;
  grpc::ServerWriteReactor<DatasetChunk>* GetDataset(grpc::CallbackServerContext* context,
                                                     const GetDatasetRequest* request) override;
  grpc::ServerReadReactor<StateChunk>* PutState(grpc::CallbackServerContext* context,
                                                PutStateReply* reply) override;
  grpc::ServerWriteReactor<StateChunk>* GetState(grpc::CallbackServerContext* context,
                                                 const GetStateRequest* request) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const GetStatusRequest* request, RunStatus* status) override;

 private:
  Run* const run_;
  const std::shared_ptr<const DatasetFiles> files_;
};

class KeyValueService final : public KeyValue::CallbackService {
 public:
  // Borrows the run, which must outlive the server.
  explicit KeyValueService(Run* run) : run_(run) {}

  grpc::ServerUnaryReactor* Set(grpc::CallbackServerContext* context, const SetRequest* request,
                                SetReply* reply) override;
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const GetRequest* request,
                                GetReply* reply) override;

 private:
  Run* const run_;
};

}  // namespace ringmaster
