#include "coordinator/mailbox.h"

#include <poll.h>

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace ringmaster {
namespace {

bool Readable(const Mailbox& mailbox) {
  pollfd polled{mailbox.fd(), POLLIN, 0};
  return poll(&polled, 1, 0) == 1;
}

TEST(MailboxTest, ReadableWhileSomethingIsThere) {
  Mailbox mailbox;
  EXPECT_FALSE(Readable(mailbox));
  int done = 0;
  mailbox.Post([&done] { done = 1; });
  mailbox.Post([&done] { done = 10 * done + 2; });
  EXPECT_TRUE(Readable(mailbox));
  for (const auto& letter : mailbox.Take()) letter();
  EXPECT_EQ(done, 12);
  EXPECT_FALSE(Readable(mailbox));
  EXPECT_TRUE(mailbox.Take().empty());
}

// Waiting for the descriptor misses nothing.
TEST(MailboxTest, ManyThreads) {
  constexpr int kThreads = 4;
  constexpr int kLetters = 5000;
  Mailbox mailbox;
  std::vector<int> last(kThreads, -1);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&mailbox, &last, t] {
      for (int i = 0; i < kLetters; ++i) {
        mailbox.Post([&last, t, i] {
          EXPECT_EQ(last[t], i - 1);
          last[t] = i;
        });
      }
    });
  }
  int taken = 0;
  while (taken < kThreads * kLetters) {
    pollfd polled{mailbox.fd(), POLLIN, 0};
    ASSERT_EQ(poll(&polled, 1, 10000), 1);
    for (const auto& letter : mailbox.Take()) {
      letter();
      ++taken;
    }
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(Readable(mailbox));
}

}  // namespace
}  // namespace ringmaster
