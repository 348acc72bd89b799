// Cuts the four data files into the chunks of GetDataset.
//
// Thread safety: none; for one thread at a time. The files never change.
#pragma once

#include <memory>
#include <string>

#include "common/dataset.h"
#include "proto/training.pb.h"

namespace ringmaster {

class DatasetChunker {
 public:
  // `have_digest` is that of the data set the receiver has already; empty: none.
  DatasetChunker(std::string run_id, std::string data_digest, const std::string& have_digest,
                 std::shared_ptr<const DatasetFiles> files);

  // Fills `chunk` with the next part; false when there is none. The first part describes the files,
  // and is the only one when the receiver has them.
  bool Next(DatasetChunk* chunk);

 private:
  void Describe(DatasetChunk* chunk) const;

  const std::string run_id_;
  const std::string data_digest_;
  const std::shared_ptr<const DatasetFiles> files_;
  bool described_ = false;
  size_t file_ = 0;    // of the next byte; kDatasetFiles: nothing is left
  size_t offset_ = 0;  // in that file
};

}  // namespace ringmaster
