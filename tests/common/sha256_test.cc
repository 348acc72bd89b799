#include "common/sha256.h"

#include <string>

#include "gtest/gtest.h"

namespace ringmaster {
namespace {

// The examples of FIPS 180-2, appendix B, and the empty message.
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kTwoBlocks[] = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1";
constexpr char kMillion[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(Sha256Test, StandardsExamples) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"), kTwoBlocks);
  EXPECT_EQ(Sha256Hex(std::string(1'000'000, 'a')), kMillion);
}

TEST(Sha256Test, PiecesMakeTheSameDigest) {
  for (const size_t piece : {1, 63, 64, 65, 999'983}) {
    const std::string message(1'000'000, 'a');
    Sha256 sha256;
    for (size_t at = 0; at < message.size(); at += piece) {
      sha256.Update(std::string_view(message).substr(at, piece));
    }
    EXPECT_EQ(sha256.FinishHex(), kMillion) << "pieces of " << piece;
  }
}

}  // namespace
}  // namespace ringmaster
