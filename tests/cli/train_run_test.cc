#include "cli/train_run.h"

#include "gtest/gtest.h"

namespace ringmaster {
namespace {

TEST(ReadyLine, AddressAndRunDirectory) {
  const ReadyLine line = ReadyLine::Parse("[::1]:29400\truns/my run");
  EXPECT_EQ(line.address, "[::1]:29400");
  EXPECT_EQ(line.run_dir, "runs/my run");
}

TEST(ReadyLine, AddressAlone) {
  const ReadyLine line = ReadyLine::Parse("127.0.0.1:29400");
  EXPECT_EQ(line.address, "127.0.0.1:29400");
  EXPECT_EQ(line.run_dir, "");
}

}  // namespace
}  // namespace ringmaster
