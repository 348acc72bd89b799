// The data set and the state on their way between coordinator and worker.

#include <unistd.h>

#include <future>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/session_coordinator.h"
#include "worker/data_file.h"
#include "worker/dataset_client.h"
#include "worker/state_client.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

DatasetFiles SomeFiles() {
  DatasetFiles files;
  for (int i = 0; i < kDatasetFiles; ++i) {
    const std::string bytes(static_cast<size_t>(i) * 1000, static_cast<char>('a' + i));
    files[i] = {absl::StrCat("file-", i), bytes, Sha256Hex(bytes)};
  }
  return files;
}

std::string AllBytes(const DatasetFiles& files) {
  std::string all;
  for (const DatasetFile& file : files) all += file.bytes;
  return all;
}

void ExpectSame(const DatasetFiles& got, const DatasetFiles& wanted) {
  for (int i = 0; i < kDatasetFiles; ++i) {
    EXPECT_EQ(got[i].name, wanted[i].name);
    EXPECT_EQ(got[i].bytes, wanted[i].bytes);
    EXPECT_EQ(got[i].sha256, wanted[i].sha256);
  }
}

TEST(DataFile, RoundTripsAndIsSealed) {
  auto fd = MakeDataFile();
  ASSERT_TRUE(fd.ok()) << fd.status();
  ASSERT_TRUE(WriteDataFile(fd->get(), {"run", "digest", SomeFiles()}).ok());
  const auto data = ReadDataFile(fd->get());
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->run_id, "run");
  EXPECT_EQ(data->digest, "digest");
  ExpectSame(data->files, SomeFiles());
  EXPECT_EQ(write(fd->get(), "x", 1), -1);
  EXPECT_EQ(ftruncate(fd->get(), 0), -1);
}

TEST(DataFile, UnsealedIsRefused) {
  auto fd = MakeDataFile();
  ASSERT_TRUE(fd.ok());
  EXPECT_EQ(ReadDataFile(fd->get()).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadDataFile(-1).status().code(), absl::StatusCode::kFailedPrecondition);
}

// GetDataset of a coordinator that serves SomeFiles(), changed by the test.
class DatasetClientTest : public ::testing::Test {
 protected:
  DatasetClientTest() {
    first_.set_run_id("run-9");
    first_.set_data_digest(DatasetDigest(files_));
    for (const DatasetFile& file : files_) {
      DatasetFileInfo* info = first_.add_files();
      info->set_name(file.name);
      info->set_size(file.bytes.size());
      info->set_sha256(file.sha256);
    }
    data_ = AllBytes(files_);
  }

  absl::StatusOr<DataFile> Fetch(const DatasetFiles* local = nullptr) {
    coordinator_.dataset = [this](const GetDatasetRequest& request,
                                  grpc::ServerWriter<DatasetChunk>* writer) {
      have_digest_ = request.have_digest();
      writer->Write(first_);
      for (size_t at = 0; at < data_.size(); at += 777) {
        DatasetChunk chunk;
        chunk.set_data(data_.substr(at, 777));
        if (!writer->Write(chunk)) break;
      }
      return result_;
    };
    coordinator_.Start();
    stub_ = Training::NewStub(MakeChannel(coordinator_.address()));
    return FetchDataset(stub_.get(), local, absl::Seconds(20));
  }

  void ExpectDamaged(const std::string& reason) {
    const auto data = Fetch();
    EXPECT_EQ(data.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(data.status().message()), HasSubstr(reason));
  }

  const DatasetFiles files_ = SomeFiles();
  DatasetChunk first_;
  std::string data_;
  grpc::Status result_;
  std::string have_digest_;
  ScriptedCoordinator coordinator_;
  std::unique_ptr<Training::Stub> stub_;
};

TEST_F(DatasetClientTest, FetchesEveryFile) {
  const auto data = Fetch();
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->run_id, "run-9");
  EXPECT_EQ(data->digest, DatasetDigest(files_));
  EXPECT_EQ(have_digest_, "");
  ExpectSame(data->files, files_);
}

TEST_F(DatasetClientTest, TakesTheLocalFilesWhenTheyAreTheSame) {
  data_.clear();
  const auto data = Fetch(&files_);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(have_digest_, DatasetDigest(files_));
  EXPECT_EQ(data->run_id, "run-9");
  ExpectSame(data->files, files_);
}

TEST_F(DatasetClientTest, FetchesWhenTheLocalFilesDiffer) {
  DatasetFiles other = files_;
  other[1].bytes = "other";
  other[1].sha256 = Sha256Hex("other");
  const auto data = Fetch(&other);
  ASSERT_TRUE(data.ok()) << data.status();
  ExpectSame(data->files, files_);
}

TEST_F(DatasetClientTest, OneFlippedByteIsFound) {
  data_[1500] ^= 1;
  ExpectDamaged("file-2 has SHA-256");
}

TEST_F(DatasetClientTest, CutOffIsFound) {
  data_.pop_back();
  ExpectDamaged("file-3 has 2999 bytes of 3000");
}

TEST_F(DatasetClientTest, TooMuchIsFound) {
  data_ += "x";
  ExpectDamaged("more bytes than were announced");
}

TEST_F(DatasetClientTest, WrongNumberOfFilesIsFound) {
  first_.mutable_files()->RemoveLast();
  ExpectDamaged("wanted 4 files, got 3");
}

TEST_F(DatasetClientTest, OverallDigestIsChecked) {
  first_.set_data_digest("00");
  ExpectDamaged("wanted 00");
}

TEST_F(DatasetClientTest, HugeFileIsRefusedBeforeItIsRead) {
  first_.mutable_files(0)->set_size(uint64_t{5} << 30);
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(DatasetClientTest, ErrorOfTheRpcKeepsItsCode) {
  result_ = grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "another run");
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kFailedPrecondition);
}

constexpr absl::Duration kSoon = absl::Seconds(20);

// Big enough for several chunks.
TrainState SomeState() {
  TrainState state;
  for (auto* part : {&state.parameters, &state.first_moment, &state.second_moment}) {
    part->resize(200001);
    for (size_t i = 0; i < part->size(); ++i) (*part)[i] = static_cast<float>(i) * 0.5f;
  }
  state.step = 469;
  return state;
}

TEST(StateClient, WhatIsPutCanBeGot) {
  ScriptedCoordinator coordinator;
  std::vector<StateChunk> chunks;
  coordinator.put_state = [&chunks](grpc::ServerReader<StateChunk>* reader) {
    StateChunk chunk;
    while (reader->Read(&chunk)) chunks.push_back(chunk);
    return grpc::Status::OK;
  };
  std::string asked_for;
  coordinator.get_state = [&](const GetStateRequest& request,
                              grpc::ServerWriter<StateChunk>* writer) {
    asked_for = request.digest();
    for (const StateChunk& chunk : chunks) writer->Write(chunk);
    return grpc::Status::OK;
  };
  coordinator.Start();
  const auto stub = Training::NewStub(MakeChannel(coordinator.address()));
  Position position;
  position.set_epoch(1);
  const TrainState state = SomeState();
  ASSERT_TRUE(PutState(stub.get(), "run", 3, position, state, kSoon, nullptr).ok());
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_EQ(chunks[0].run_id(), "run");
  EXPECT_EQ(chunks[0].generation(), 3u);
  EXPECT_EQ(chunks[0].position().epoch(), 1u);
  EXPECT_EQ(chunks[0].step(), 469u);
  EXPECT_EQ(chunks[0].num_parameters(), 200001u);
  EXPECT_EQ(chunks[0].digest(), StateSha256(state));
  EXPECT_EQ(chunks[1].num_parameters(), 0u);

  const auto Get = [&stub](const std::string& digest, size_t parameters) {
    return GetState(stub.get(), "run", 3, digest, parameters, kSoon, nullptr);
  };
  const auto got = Get(StateSha256(state), 200001);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, state);
  EXPECT_EQ(asked_for, StateSha256(state));
  EXPECT_EQ(Get(std::string(64, '0'), 200001).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Get(StateSha256(state), 200000).status().code(), absl::StatusCode::kInvalidArgument);
  (*chunks[1].mutable_data())[5] ^= 1;
  EXPECT_EQ(Get(StateSha256(state), 200001).status().code(), absl::StatusCode::kDataLoss);
}

TEST(StateClient, RefusalKeepsItsCode) {
  ScriptedCoordinator coordinator;
  coordinator.put_state = [](grpc::ServerReader<StateChunk>*) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "old generation");
  };
  coordinator.get_state = [](const GetStateRequest&, grpc::ServerWriter<StateChunk>*) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "no state yet");
  };
  coordinator.Start();
  const auto stub = Training::NewStub(MakeChannel(coordinator.address()));
  EXPECT_EQ(PutState(stub.get(), "run", 1, Position(), SomeState(), kSoon, nullptr).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetState(stub.get(), "run", 1, "digest", 10, kSoon, nullptr).status().code(),
            absl::StatusCode::kNotFound);
}

// The state is not there yet: whoever waits for it is told that the generation is over.
TEST(StateClient, InterruptEndsTheWait) {
  ScriptedCoordinator coordinator;
  std::promise<void> asked;
  std::promise<void> over;
  coordinator.get_state = [&](const GetStateRequest&, grpc::ServerWriter<StateChunk>*) {
    asked.set_value();
    over.get_future().wait();
    return grpc::Status::OK;
  };
  coordinator.Start();
  const auto stub = Training::NewStub(MakeChannel(coordinator.address()));
  Interrupt interrupt;
  auto got = std::async(std::launch::async, [&] {
    return GetState(stub.get(), "run", 1, "digest", 10, absl::Seconds(600), &interrupt);
  });
  asked.get_future().wait();
  const absl::Time start = absl::Now();
  interrupt.Trigger();
  EXPECT_EQ(got.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  over.set_value();
}

}  // namespace
}  // namespace ringmaster
