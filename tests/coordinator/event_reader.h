// Reads event files back, for tests: written from the format's description, with a CRC of its own.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "proto/tensorboard.pb.h"
#include "tests/temporary_directory.h"

namespace ringmaster::tensorboard {

inline std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The masked CRC-32C, bit by bit.
inline uint32_t SlowMaskedCrc(std::string_view data) {
  uint32_t crc = ~0u;
  for (const char c : data) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
  }
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

// The records of `bytes`. A broken or torn record fails the test.
inline std::vector<std::string> ParseRecords(std::string_view bytes) {
  std::vector<std::string> records;
  while (!bytes.empty()) {
    uint64_t length = 0;
    uint32_t length_crc = 0;
    uint32_t data_crc = 0;
    if (bytes.size() >= 12) std::memcpy(&length, bytes.data(), 8);
    if (bytes.size() < 16 || length > bytes.size() - 16) {
      ADD_FAILURE() << "torn record after " << records.size();
      break;
    }
    std::memcpy(&length_crc, bytes.data() + 8, 4);
    std::memcpy(&data_crc, bytes.data() + 12 + length, 4);
    const std::string_view data = bytes.substr(12, length);
    EXPECT_EQ(length_crc, SlowMaskedCrc(bytes.substr(0, 8)));
    EXPECT_EQ(data_crc, SlowMaskedCrc(data));
    records.emplace_back(data);
    bytes.remove_prefix(16 + length);
  }
  return records;
}

inline std::vector<Event> ReadEvents(const std::string& path) {
  std::vector<Event> events;
  for (const std::string& record : ParseRecords(ReadBytes(path))) {
    EXPECT_TRUE(events.emplace_back().ParseFromString(record));
  }
  return events;
}

// The events of all files in `directory`, in the order in which TensorBoard reads them.
inline std::vector<Event> ReadLives(const std::string& directory) {
  std::set<std::string> files;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    files.insert(file.path());
  }
  std::vector<Event> events;
  for (const std::string& file : files) {
    for (Event& event : ReadEvents(file)) events.push_back(std::move(event));
  }
  return events;
}

// The events of the one file in `directory`.
inline std::vector<Event> ReadRun(const std::string& directory) {
  std::vector<std::string> files;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    files.push_back(file.path());
  }
  EXPECT_EQ(files.size(), 1u) << directory;
  return files.size() == 1 ? ReadEvents(files[0]) : std::vector<Event>();
}

struct Point {
  int64_t step = 0;
  double value = 0;

  friend bool operator==(const Point&, const Point&) = default;
  friend void PrintTo(const Point& point, std::ostream* out) {
    *out << "(" << point.step << ", " << point.value << ")";
  }
};

// The scalars of one tag, in the order of the file.
inline std::vector<Point> Scalars(const std::vector<Event>& events, const std::string& tag) {
  std::vector<Point> points;
  for (const Event& event : events) {
    for (const Summary::Value& value : event.summary().value()) {
      if (value.tag() != tag) continue;
      EXPECT_EQ(value.tensor().dtype(), DT_FLOAT);
      EXPECT_EQ(value.tensor().float_val_size(), 1);
      points.push_back({event.step(), value.tensor().float_val(0)});
    }
  }
  return points;
}

}  // namespace ringmaster::tensorboard
