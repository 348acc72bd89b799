#include "coordinator/dataset_chunker.h"

#include <algorithm>
#include <utility>

namespace ringmaster {
namespace {

// Well below kMaxMessageBytes of common/credentials.h.
constexpr size_t kChunkBytes = 512 << 10;

}  // namespace

DatasetChunker::DatasetChunker(std::string run_id, std::string data_digest,
                               const std::string& have_digest,
                               std::shared_ptr<const DatasetFiles> files)
    : run_id_(std::move(run_id)), data_digest_(std::move(data_digest)), files_(std::move(files)) {
  if (have_digest == data_digest_) file_ = kDatasetFiles;
}

bool DatasetChunker::Next(DatasetChunk* chunk) {
  const bool first = !std::exchange(described_, true);
  while (file_ < kDatasetFiles && offset_ == (*files_)[file_].bytes.size()) {
    ++file_;
    offset_ = 0;
  }
  chunk->Clear();
  if (first) Describe(chunk);
  if (file_ == kDatasetFiles) return first;
  const std::string& bytes = (*files_)[file_].bytes;
  const size_t size = std::min(kChunkBytes, bytes.size() - offset_);
  chunk->set_data(bytes.data() + offset_, size);
  offset_ += size;
  return true;
}

void DatasetChunker::Describe(DatasetChunk* chunk) const {
  chunk->set_run_id(run_id_);
  chunk->set_data_digest(data_digest_);
  for (const DatasetFile& file : *files_) {
    DatasetFileInfo* info = chunk->add_files();
    info->set_name(file.name);
    info->set_size(file.bytes.size());
    info->set_sha256(file.sha256);
  }
}

}  // namespace ringmaster
