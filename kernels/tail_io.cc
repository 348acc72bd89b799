#include "kernels/tail_io.h"

#include <algorithm>

namespace ringmaster {
size_t TailSize(Element element, int world_size) {
  return element == Element::kInt64 ? tail::WholeSize(world_size) : tail::Size(world_size);
}

void WriteTail(const StepRecord& record, const RankTimes& times, int rank, DeviceSpan span) {
  if (span.element == Element::kInt64) {
    int64_t* const out = span.integers();
    std::fill_n(out, span.count, int64_t{0});
    WriteRecord(record, out);
    out[tail::kWholeRankTimes + 2 * rank] = tail::ToNanoseconds(times.compute_us);
    out[tail::kWholeRankTimes + 2 * rank + 1] = tail::ToNanoseconds(times.all_reduce_us);
    return;
  }
  float* const out = span.floats();
  std::fill_n(out, span.count, 0.0f);
  WriteRecord(record, out);
  out[tail::kRankTimes + 2 * rank] = times.compute_us;
  out[tail::kRankTimes + 2 * rank + 1] = times.all_reduce_us;
}

ReducedRecord ReadTail(DeviceSpan span, int world_size) {
  const bool whole = span.element == Element::kInt64;
  ReducedRecord reduced{whole ? ReadRecord(span.integers()) : ReadRecord(span.floats()),
                        std::vector<RankTimes>(world_size)};
  for (int rank = 0; rank < world_size; ++rank) {
    const int at = (whole ? int{tail::kWholeRankTimes} : tail::kRankTimes) + 2 * rank;
    RankTimes& times = reduced.rank_times[rank];
    times = whole ? RankTimes{tail::ToMicroseconds(span.integers()[at]),
                              tail::ToMicroseconds(span.integers()[at + 1])}
                  : RankTimes{span.floats()[at], span.floats()[at + 1]};
  }
  return reduced;
}

}  // namespace ringmaster
