#include "common/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace ringmaster {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the data are copied as they lie");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kAlignment = 8;
constexpr uint64_t kMaxHeader = 1 << 20;  // some ten thousand tensors
constexpr char kMetadata[] = "__metadata__";

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(what); }

// A tensor's entry in the header.
struct Entry {
  std::string name;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in bytes of the data
  uint64_t end = 0;
};

// Splits `bytes` into header and data.
absl::Status Split(std::string_view bytes, std::string_view* header, std::string_view* data) {
  if (bytes.size() < kLengthBytes) {
    return Bad(absl::StrCat("it has ", bytes.size(), " bytes, too few for a safetensors file"));
  }
  uint64_t length;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  bytes.remove_prefix(kLengthBytes);
  if (length > kMaxHeader || length > bytes.size()) {
    return Bad(absl::StrCat("it announces a header of ", length, " bytes, but has ", bytes.size(),
                            " more (and the most is ", kMaxHeader,
                            "): not a safetensors file, or cut off"));
  }
  *header = bytes.substr(0, length);
  *data = bytes.substr(length);
  return absl::OkStatus();
}

absl::StatusOr<json> ParseHeader(std::string_view header) {
  // JSON itself lets a later key replace an earlier one; here that would hide a tensor.
  std::vector<std::set<std::string>> open_objects;
  std::string twice;
  const auto watch = [&](int, json::parse_event_t event, const json& value) {
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key) {
      const std::string name = value.get<std::string>();
      if (!open_objects.back().insert(name).second) twice = name;
    }
    return true;
  };
  json parsed = json::parse(header, watch, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return Bad("its header is not a JSON object: not a safetensors file");
  if (!twice.empty()) return Bad(absl::StrCat("its header names ", twice, " twice"));
  return parsed;
}

absl::StatusOr<SafetensorsMetadata> ParseMetadata(const json& header) {
  SafetensorsMetadata metadata;
  const auto found = header.find(kMetadata);
  if (found == header.end()) return metadata;
  if (!found->is_object()) return Bad("its __metadata__ is not an object of strings");
  for (const auto& [name, value] : found->items()) {
    if (!value.is_string()) return Bad(absl::StrCat("its __metadata__ ", name, " is not a string"));
    metadata.emplace(name, value.get<std::string>());
  }
  return metadata;
}

bool IsListOfCounts(const json& value) {
  return value.is_array() && std::all_of(value.begin(), value.end(), [](const json& item) {
           return item.is_number_unsigned();
         });
}

// The bytes of an fp32 tensor of `shape`; fails where they would not fit in `limit`.
absl::StatusOr<uint64_t> BytesOfShape(const json& shape, uint64_t limit) {
  if (std::find(shape.begin(), shape.end(), json(0u)) != shape.end()) return uint64_t{0};
  uint64_t bytes = sizeof(float);
  for (const json& item : shape) {
    const uint64_t size = item.get<uint64_t>();
    if (size > limit / bytes) {
      return Bad(absl::StrCat("a shape of ", shape.dump(), ", but there are only ", limit,
                              " bytes of data; the file is cut off or damaged"));
    }
    bytes *= size;
  }
  return bytes;
}

absl::StatusOr<Entry> ParseEntry(const std::string& name, const json& value, uint64_t data_size) {
  const json dtype = value.is_object() ? value.value("dtype", json()) : json();
  const json shape = value.is_object() ? value.value("shape", json()) : json();
  const json offsets = value.is_object() ? value.value("data_offsets", json()) : json();
  if (!dtype.is_string() || !IsListOfCounts(shape) || !IsListOfCounts(offsets) ||
      offsets.size() != 2) {
    return Bad("no proper dtype, shape and data_offsets in the header");
  }
  if (dtype != "F32") {
    return Bad(absl::StrCat("dtype ", dtype.get<std::string>(), ", wanted F32; convert it"));
  }
  RM_ASSIGN_OR_RETURN(const uint64_t wanted, BytesOfShape(shape, data_size));
  Entry entry{name, {}, offsets[0].get<uint64_t>(), offsets[1].get<uint64_t>()};
  if (entry.begin > entry.end || entry.end > data_size || entry.end - entry.begin != wanted) {
    return Bad(absl::StrCat("data at ", offsets.dump(), ", wanted ", wanted, " bytes among ",
                            data_size, "; the file is cut off or damaged"));
  }
  // An empty tensor's other sizes were not looked at above.
  for (const json& item : shape) {
    if (item.get<uint64_t>() > uint64_t{INT64_MAX}) return Bad("a size beyond 2^63");
    entry.shape.push_back(item.get<int64_t>());
  }
  return entry;
}

// The header's entries by place, which together cover the data exactly.
absl::StatusOr<std::vector<Entry>> ParseEntries(const json& header, uint64_t data_size) {
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadata) continue;
    auto entry = ParseEntry(name, value, data_size);
    if (!entry.ok()) return Bad(absl::StrCat(name, " has ", entry.status().message()));
    entries.push_back(*std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      return Bad(absl::StrCat("the data of ", entry.name, " begin at ", entry.begin, ", wanted ",
                              covered, ": its tensors overlap or leave a gap"));
    }
    covered = entry.end;
  }
  if (covered != data_size) {
    return Bad(absl::StrCat("its tensors cover ", covered, " of ", data_size, " bytes of data"));
  }
  return entries;
}

}  // namespace

std::string EncodeSafetensors(const std::vector<TensorView>& tensors,
                              const SafetensorsMetadata& metadata) {
  json header = json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t end = 0;
  for (const TensorView& tensor : tensors) {
    const uint64_t begin = end;
    end += tensor.values.size_bytes();
    header[tensor.name] = {
        {"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  const uint64_t length = text.size();
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, kLengthBytes);
  bytes.reserve(kLengthBytes + length + end);
  bytes += text;
  for (const TensorView& tensor : tensors) {
    bytes.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size_bytes());
  }
  return bytes;
}

absl::StatusOr<Safetensors> DecodeSafetensors(std::string_view bytes) {
  std::string_view header;
  std::string_view data;
  RM_RETURN_IF_ERROR(Split(bytes, &header, &data));
  RM_ASSIGN_OR_RETURN(const json parsed, ParseHeader(header));
  RM_ASSIGN_OR_RETURN(std::vector<Entry> entries, ParseEntries(parsed, data.size()));
  Safetensors file;
  RM_ASSIGN_OR_RETURN(file.metadata, ParseMetadata(parsed));
  for (Entry& entry : entries) {
    const uint64_t size = entry.end - entry.begin;
    Tensor tensor{std::move(entry.name), std::move(entry.shape), {}};
    tensor.values.resize(size / sizeof(float));
    if (size > 0) std::memcpy(tensor.values.data(), data.data() + entry.begin, size);
    file.tensors.push_back(std::move(tensor));
  }
  return file;
}

}  // namespace ringmaster
