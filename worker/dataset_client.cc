#include "worker/dataset_client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/sha256.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{4} << 30;

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError(absl::StrCat("the data set from the coordinator is damaged: ", what));
}

// Fills the four files, one after the other, from chunks that end anywhere.
class FileAssembler {
 public:
  absl::Status Start(const DatasetChunk& first) {
    if (first.files_size() != kDatasetFiles) {
      return Damaged(absl::StrCat("wanted ", kDatasetFiles, " files, got ", first.files_size()));
    }
    for (int i = 0; i < kDatasetFiles; ++i) {
      const DatasetFileInfo& info = first.files(i);
      if (info.size() > kMaxFileBytes) {
        return absl::ResourceExhaustedError(
            absl::StrCat(info.name(), " has ", info.size(), " bytes; the most is 4 GiB"));
      }
      sizes_[i] = info.size();
      files_[i] = {info.name(), "", info.sha256()};
    }
    return absl::OkStatus();
  }

  absl::Status Append(const std::string& data) {
    size_t used = 0;
    while (used < data.size()) {
      while (current_ < kDatasetFiles && files_[current_].bytes.size() == sizes_[current_]) {
        ++current_;
      }
      if (current_ == kDatasetFiles) return Damaged("more bytes than were announced");
      std::string& bytes = files_[current_].bytes;
      const size_t take = std::min(data.size() - used, sizes_[current_] - bytes.size());
      bytes.append(data, used, take);
      used += take;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<DatasetFiles> Finish() {
    for (int i = 0; i < kDatasetFiles; ++i) {
      const DatasetFile& file = files_[i];
      if (file.bytes.size() != sizes_[i]) {
        return Damaged(
            absl::StrCat(file.name, " has ", file.bytes.size(), " bytes of ", sizes_[i]));
      }
      if (const std::string sha256 = Sha256Hex(file.bytes); sha256 != file.sha256) {
        return Damaged(absl::StrCat(file.name, " has SHA-256 ", sha256, ", wanted ", file.sha256));
      }
    }
    return std::move(files_);
  }

 private:
  DatasetFiles files_;
  size_t sizes_[kDatasetFiles] = {};
  int current_ = 0;
};

}  // namespace

absl::StatusOr<DataFile> FetchDataset(Training::StubInterface* stub, const DatasetFiles* local,
                                      absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  GetDatasetRequest request;
  if (local != nullptr) request.set_have_digest(DatasetDigest(*local));
  const auto reader = stub->GetDataset(&context, request);
  DatasetChunk chunk;
  if (!reader->Read(&chunk)) {
    RM_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
    return Damaged("nothing came");
  }
  DataFile data{chunk.run_id(), chunk.data_digest(), {}};
  if (local != nullptr && request.have_digest() == data.digest) {
    context.TryCancel();
    data.files = *local;
    return data;
  }
  FileAssembler assembler;
  RM_RETURN_IF_ERROR(assembler.Start(chunk));
  do {
    RM_RETURN_IF_ERROR(assembler.Append(chunk.data()));
  } while (reader->Read(&chunk));
  RM_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  RM_ASSIGN_OR_RETURN(data.files, assembler.Finish());
  if (const std::string digest = DatasetDigest(data.files); digest != data.digest) {
    return Damaged(absl::StrCat("its digest is ", digest, ", wanted ", data.digest));
  }
  return data;
}

}  // namespace ringmaster
