// FileStore: a KeyValueStore for ranks that are processes of one machine: a file for each key, in
// a directory of their own.
//
// Thread safety: safe from several threads and processes.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "worker/key_value_store.h"

namespace ringmaster {

class FileStore : public KeyValueStore {
 public:
  // `directory` exists and is empty at first. Its owner removes it.
  explicit FileStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

  // A file is written under another name first, so that nobody reads half of it.
  absl::Status Set(const std::string& key, const std::string& value) override {
    const std::filesystem::path path = PathOf(key);
    const std::filesystem::path written = path.string() + ".part";
    std::ofstream(written, std::ios::binary) << value;
    std::error_code error;
    std::filesystem::rename(written, path, error);
    return error ? absl::InternalError(error.message()) : absl::OkStatus();
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    for (;;) {
      if (std::ifstream file(PathOf(key), std::ios::binary); file) {
        return std::string(std::istreambuf_iterator<char>(file), {});
      }
      if (absl::Now() >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat("nobody set the key '", key, "'"));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

 private:
  std::filesystem::path PathOf(std::string key) const {
    for (char& c : key) c = c == '/' ? '.' : c;
    return directory_ / key;
  }

  const std::filesystem::path directory_;
};

}  // namespace ringmaster
