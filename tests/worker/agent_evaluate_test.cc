#include "gtest/gtest.h"
#include "worker/evaluate.h"

namespace ringmaster {
namespace {

TEST(Confusion, CountsTrueByPredicted) {
  const ConfusionMatrix matrix = CountConfusion({0, 1, 1, 2, 2, 2}, {0, 1, 0, 2, 2, 1}, 3);
  EXPECT_EQ(matrix, (ConfusionMatrix{1, 0, 0, 1, 1, 0, 0, 1, 2}));
}

TEST(Confusion, IsPrintedAligned) {
  EXPECT_EQ(FormatConfusion({980, 0, 0, 1, 1134, 0, 0, 0, 0}, 3),
            " true\\as     0     1     2  recall %\n"
            "       0   980     0     0     100.0\n"
            "       1     1  1134     0      99.9\n"
            "       2     0     0     0         -\n"
            " prec. %  99.9 100.0     -\n");
}

}  // namespace
}  // namespace ringmaster
