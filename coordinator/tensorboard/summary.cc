#include "coordinator/tensorboard/summary.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace ringmaster::tensorboard {
namespace {

Summary::Value Value(const std::string& tag, const char* plugin, DataClass data_class,
                     DataType dtype) {
  Summary::Value value;
  value.set_tag(tag);
  value.mutable_metadata()->mutable_plugin_data()->set_plugin_name(plugin);
  value.mutable_metadata()->set_data_class(data_class);
  value.mutable_tensor()->set_dtype(dtype);
  value.mutable_tensor()->mutable_tensor_shape();  // present, even where it is that of a scalar
  return value;
}

struct Histogram {
  double min = 0;
  double max = 0;
  std::array<double, kHistogramBuckets> counts = {};
};

Histogram CountValues(std::span<const float> values) {
  Histogram histogram;
  bool any = false;
  for (const float value : values) {
    if (!std::isfinite(value)) continue;
    histogram.min = any ? std::min<double>(histogram.min, value) : value;
    histogram.max = any ? std::max<double>(histogram.max, value) : value;
    any = true;
  }
  const double width = (histogram.max - histogram.min) / kHistogramBuckets;
  for (const float value : values) {
    if (!std::isfinite(value)) continue;
    const double bucket =
        width > 0 ? std::floor((value - histogram.min) / width) : kHistogramBuckets - 1;
    histogram.counts[std::min<int>(static_cast<int>(bucket), kHistogramBuckets - 1)] += 1;
  }
  return histogram;
}

}  // namespace

Summary::Value ScalarValue(const std::string& tag, float value) {
  Summary::Value summary = Value(tag, "scalars", DATA_CLASS_SCALAR, DT_FLOAT);
  summary.mutable_tensor()->add_float_val(value);
  return summary;
}

Summary::Value TextValue(const std::string& tag, const std::string& text) {
  Summary::Value summary = Value(tag, "text", DATA_CLASS_TENSOR, DT_STRING);
  summary.mutable_tensor()->add_string_val(text);
  return summary;
}

Summary::Value HistogramValue(const std::string& tag, std::span<const float> values) {
  const Histogram histogram = CountValues(values);
  const double width = (histogram.max - histogram.min) / kHistogramBuckets;
  Summary::Value summary = Value(tag, "histograms", DATA_CLASS_TENSOR, DT_DOUBLE);
  TensorProto* tensor = summary.mutable_tensor();
  tensor->mutable_tensor_shape()->add_dim()->set_size(kHistogramBuckets);
  tensor->mutable_tensor_shape()->add_dim()->set_size(3);
  for (int bucket = 0; bucket < kHistogramBuckets; ++bucket) {
    const bool last = bucket == kHistogramBuckets - 1;
    tensor->add_double_val(histogram.min + bucket * width);
    tensor->add_double_val(last ? histogram.max : histogram.min + (bucket + 1) * width);
    tensor->add_double_val(histogram.counts[bucket]);
  }
  return summary;
}

}  // namespace ringmaster::tensorboard
