#include "common/dataset.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/byte_source.h"
#include "common/file.h"
#include "common/model.h"
#include "common/sha256.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr char kSumsName[] = "SHA256SUMS";
constexpr uint8_t kUnsignedByte = 0x08;              // the IDX type code of the elements
constexpr uint64_t kMaxPromise = uint64_t{4} << 30;  // bytes that an IDX header may promise
constexpr uint64_t kMaxSamples = uint64_t{1} << 31;  // what a Permutation takes
constexpr uint64_t kMaxPixels = ModelSpec::kMaxWidth;

absl::Status Bad(const std::string& file, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", what));
}

// File name -> digest.
using Sums = std::map<std::string, std::string>;

bool IsSha256(const std::string& text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isxdigit(static_cast<unsigned char>(c));
         });
}

// Reads the lines of sha256sum: the digest, a space, a space or '*' (binary), the name.
absl::StatusOr<Sums> ReadSums(const std::string& path) {
  RM_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  Sums sums;
  int number = 0;
  for (const auto line : absl::StrSplit(text, '\n')) {
    ++number;
    const std::string entry(absl::StripAsciiWhitespace(line));
    if (entry.empty() || entry[0] == '#') continue;
    const std::string digest = absl::AsciiStrToLower(entry.substr(0, 64));
    if (entry.size() < 67 || !IsSha256(digest) || entry[64] != ' ') {
      return Bad(path, absl::StrCat("line ", number,
                                    " is not a SHA-256 in hex and a file name; "
                                    "write the file with sha256sum, or remove it"));
    }
    sums[entry.substr(66)] = digest;
  }
  return sums;
}

absl::StatusOr<DatasetFile> ReadEitherForm(const std::string& directory, const std::string& name) {
  for (const std::string& form : {absl::StrCat(name, ".gz"), name}) {
    auto bytes = ReadFile(absl::StrCat(directory, "/", form));
    if (bytes.ok()) {
      std::string sha256 = Sha256Hex(*bytes);
      return DatasetFile{form, *std::move(bytes), std::move(sha256)};
    }
    if (!absl::IsNotFound(bytes.status())) return bytes.status();
  }
  return absl::NotFoundError(absl::StrCat(
      "no ", name, ".gz and no ", name, " in ", directory, "; a data set is the four files ",
      kDatasetFileNames[0], ", ", kDatasetFileNames[1], ", ", kDatasetFileNames[2], " and ",
      kDatasetFileNames[3], ", each plain or with .gz. Pass --data-dir with a directory of them"));
}

absl::Status CheckSum(const std::string& directory, const DatasetFile& file, const Sums& sums) {
  const auto wanted = sums.find(file.name);
  const std::string path = absl::StrCat(directory, "/", file.name);
  if (wanted == sums.end()) {
    return absl::DataLossError(absl::StrCat(
        path, " cannot be checked: ", kSumsName, " beside it does not list it. Add the line '",
        file.sha256, "  ", file.name, "' if the file is right, or remove ", kSumsName));
  }
  if (wanted->second == file.sha256) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      path, " has SHA-256 ", file.sha256, ", but ", kSumsName, " beside it says ", wanted->second,
      ". Get the file again, or correct ", kSumsName, " if it was changed on purpose"));
}

// One decoded IDX file.
struct IdxArray {
  std::vector<uint32_t> sizes;  // one for each dimension
  std::vector<uint8_t> values;  // row-major
};

uint32_t BigEndian32(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

absl::Status CheckMagic(const std::string& file, const uint8_t* magic, int dimensions) {
  const uint32_t wanted = uint32_t{kUnsignedByte} << 8 | static_cast<uint32_t>(dimensions);
  if (magic[0] == 0x1F && magic[1] == 0x8B) {
    return Bad(file, absl::StrCat("is compressed with gzip; name it ", file, ".gz"));
  }
  if (magic[0] != 0 || magic[1] != 0) {
    return Bad(file, absl::StrFormat("is not an IDX file: it begins with 0x%08x, wanted 0x%08x",
                                     BigEndian32(magic), wanted));
  }
  if (magic[2] != kUnsignedByte) {
    return Bad(file, absl::StrFormat("has elements of IDX type 0x%02x, wanted 0x%02x (unsigned "
                                     "bytes); convert it",
                                     magic[2], kUnsignedByte));
  }
  if (magic[3] != dimensions) {
    return Bad(file,
               absl::StrFormat("has %d dimensions, wanted %d (%s); are the files mixed up?",
                               magic[3], dimensions,
                               dimensions == 1 ? "labels: count" : "images: count, rows, columns"));
  }
  return absl::OkStatus();
}

// The number of bytes that the header promises.
absl::StatusOr<uint64_t> Promise(const std::string& file, const std::vector<uint32_t>& sizes) {
  uint64_t promise = 1;
  for (const uint32_t size : sizes) {
    if (size == 0) {
      return Bad(file, sizes[0] == 0 ? "holds no samples"
                                     : absl::StrCat("holds images of ", sizes[1], " x ", sizes[2],
                                                    " pixels"));
    }
    if (size > kMaxPromise / promise) {
      return Bad(file, absl::StrCat("promises more than ", kMaxPromise, " bytes in its header (",
                                    absl::StrJoin(sizes, " x "), ")"));
    }
    promise *= size;
  }
  if (sizes[0] > kMaxSamples) {
    return Bad(file, absl::StrCat("promises ", sizes[0], " samples; the most is ", kMaxSamples));
  }
  if (sizes.size() == 3 && uint64_t{sizes[1]} * sizes[2] > kMaxPixels) {
    return Bad(file, absl::StrCat("holds images of ", sizes[1], " x ", sizes[2],
                                  " pixels; the most is ", kMaxPixels, " pixels an image"));
  }
  return promise;
}

// Takes one IDX file apart. The bytes must outlive it.
class IdxDecoder {
 public:
  IdxDecoder(const DatasetFile& file, int dimensions)
      : name_(file.name),
        gzip_(file.name.ends_with(".gz")),
        dimensions_(dimensions),
        source_(OpenByteSource(file.bytes, gzip_)) {}

  absl::StatusOr<IdxArray> Decode() {
    IdxArray array;
    RM_RETURN_IF_ERROR(ReadHeader(&array.sizes));
    RM_ASSIGN_OR_RETURN(const uint64_t promise, Promise(name_, array.sizes));
    // Believed only as far as the stored bytes can go: a few bytes cannot claim gigabytes.
    if (promise > source_->limit()) return Truncated(promise);
    array.values.resize(promise);
    RM_ASSIGN_OR_RETURN(const uint64_t got, Read(array.values.data(), promise));
    if (got < promise) return Truncated(promise);
    RM_RETURN_IF_ERROR(ExpectEnd(promise));
    return array;
  }

 private:
  absl::StatusOr<uint64_t> Read(uint8_t* to, uint64_t count) {
    const auto got = source_->Read(to, count);
    if (!got.ok()) return Bad(name_, absl::StrCat(got.status().message(), "; get the file again"));
    return got;
  }

  absl::Status ReadHeader(std::vector<uint32_t>* sizes) {
    uint8_t header[4 + 4 * 3] = {};
    const uint64_t length = 4 + 4 * static_cast<uint64_t>(dimensions_);
    RM_ASSIGN_OR_RETURN(const uint64_t got, Read(header, length));
    if (got >= 4) RM_RETURN_IF_ERROR(CheckMagic(name_, header, dimensions_));
    if (got < length) {
      return Bad(name_, absl::StrCat("is truncated: it ends after ", got, " of the ", length,
                                     " bytes of its header; get the file again"));
    }
    for (int i = 0; i < dimensions_; ++i) sizes->push_back(BigEndian32(header + 4 + 4 * i));
    return absl::OkStatus();
  }

  // Also makes gzip check its own sum, which comes last.
  absl::Status ExpectEnd(uint64_t promise) {
    uint8_t more;
    RM_ASSIGN_OR_RETURN(const uint64_t got, Read(&more, 1));
    if (got == 0) return absl::OkStatus();
    return Bad(name_, absl::StrCat(gzip_ ? "expands past the " : "has trailing bytes after the ",
                                   promise, " bytes that its header promises; get the file again"));
  }

  absl::Status Truncated(uint64_t promise) const {
    return Bad(name_, absl::StrCat("is truncated: it holds fewer than the ", promise,
                                   " bytes that its header promises; get the file again"));
  }

  const std::string& name_;
  bool gzip_;
  int dimensions_;
  std::unique_ptr<ByteSource> source_;
};

struct DecodedSplit {
  DatasetSplit split;
  uint32_t rows = 0;
  uint32_t columns = 0;
  int max_label = 0;
};

absl::StatusOr<DecodedSplit> DecodeSplit(const DatasetFile& images, const DatasetFile& labels) {
  RM_ASSIGN_OR_RETURN(IdxArray pixels, IdxDecoder(images, 3).Decode());
  RM_ASSIGN_OR_RETURN(IdxArray classes, IdxDecoder(labels, 1).Decode());
  if (pixels.sizes[0] != classes.sizes[0]) {
    return Bad(images.name, absl::StrCat("holds ", pixels.sizes[0], " images, but ", labels.name,
                                         " holds ", classes.sizes[0], " labels"));
  }
  DecodedSplit decoded;
  decoded.max_label = *std::max_element(classes.values.begin(), classes.values.end());
  decoded.rows = pixels.sizes[1];
  decoded.columns = pixels.sizes[2];
  decoded.split = {std::move(pixels.values), std::move(classes.values), pixels.sizes[0]};
  return decoded;
}

// A class that was never trained on cannot be predicted: the files do not belong together.
absl::Status CheckTestLabels(const DecodedSplit& train, const DecodedSplit& test,
                             const std::string& file) {
  if (test.max_label <= train.max_label) return absl::OkStatus();
  const auto& labels = test.split.labels;
  const auto at = std::find_if(labels.begin(), labels.end(),
                               [&](uint8_t label) { return label > train.max_label; });
  return Bad(file,
             absl::StrCat("label ", *at, " of sample ", at - labels.begin(),
                          " is out of range: the training labels are 0 to ", train.max_label));
}

}  // namespace

std::string DatasetDigest(const DatasetFiles& files) {
  Sha256 sha256;
  for (const DatasetFile& file : files) {
    sha256.Update(absl::StrCat(file.sha256, "  ", file.name, "\n"));
  }
  return sha256.FinishHex();
}

absl::StatusOr<DatasetFiles> ReadDatasetFiles(const std::string& directory) {
  DatasetFiles files;
  for (int i = 0; i < kDatasetFiles; ++i) {
    RM_ASSIGN_OR_RETURN(files[i], ReadEitherForm(directory, kDatasetFileNames[i]));
  }
  const auto sums = ReadSums(absl::StrCat(directory, "/", kSumsName));
  if (absl::IsNotFound(sums.status())) return files;
  RM_RETURN_IF_ERROR(sums.status());
  for (const DatasetFile& file : files) RM_RETURN_IF_ERROR(CheckSum(directory, file, *sums));
  return files;
}

absl::StatusOr<Dataset> DecodeDataset(const DatasetFiles& files) {
  RM_ASSIGN_OR_RETURN(DecodedSplit train, DecodeSplit(files[0], files[1]));
  RM_ASSIGN_OR_RETURN(DecodedSplit test, DecodeSplit(files[2], files[3]));
  if (train.rows != test.rows || train.columns != test.columns) {
    return Bad(files[2].name,
               absl::StrCat("holds images of ", test.rows, " x ", test.columns, " pixels, but ",
                            files[0].name, " holds images of ", train.rows, " x ", train.columns));
  }
  RM_RETURN_IF_ERROR(CheckTestLabels(train, test, files[3].name));
  Dataset dataset;
  dataset.train = std::move(train.split);
  dataset.test = std::move(test.split);
  dataset.rows = static_cast<int>(train.rows);
  dataset.columns = static_cast<int>(train.columns);
  dataset.num_classes = train.max_label + 1;
  return dataset;
}

}  // namespace ringmaster
