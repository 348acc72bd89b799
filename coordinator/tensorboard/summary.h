// The values of an event file: scalars, texts and histograms, in the form that TensorBoard's
// plugins of those names read. Each carries its metadata; EventWriter drops it where the file has
// it already.
//
// Thread safety: pure functions.
#pragma once

#include <span>
#include <string>

#include "proto/tensorboard.pb.h"

namespace ringmaster::tensorboard {

// A rank-0 float tensor (the scalars plugin drops doubles).
Summary::Value ScalarValue(const std::string& tag, float value);

// A text; TensorBoard renders it as Markdown.
Summary::Value TextValue(const std::string& tag, const std::string& text);

inline constexpr int kHistogramBuckets = 30;

// A double tensor [kHistogramBuckets, 3] of (left, right, count): buckets of equal width from the
// smallest to the largest value, each with its left end, the last with its right end too. If all
// values are equal, all buckets are empty ones at that value but the last, which holds them all; of
// no value at all, all numbers are 0. Values that are not finite are left out.
Summary::Value HistogramValue(const std::string& tag, std::span<const float> values);

}  // namespace ringmaster::tensorboard
