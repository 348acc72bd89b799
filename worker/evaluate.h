// `ringmaster-worker evaluate`: what a saved network gets right on the test images.
//
// Thread safety: RunEvaluate is for main(); the rest are pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/settings.h"

namespace ringmaster {

// Rows: the true class; columns: the predicted one. [classes, classes], row-major.
using ConfusionMatrix = std::vector<uint64_t>;

ConfusionMatrix CountConfusion(const std::vector<uint8_t>& labels,
                               const std::vector<uint8_t>& predictions, int classes);

// The matrix as text, aligned, with each class's recall at its row's end and precision below.
std::string FormatConfusion(const ConfusionMatrix& matrix, int classes);

// Prints loss, accuracy and confusion matrix of settings.weights on the test split. Returns 0, or 2
// when the weights or the data cannot be used, with the reason logged.
int RunEvaluate(const Settings& settings);

}  // namespace ringmaster
