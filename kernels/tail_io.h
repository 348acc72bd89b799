// Writes and reads the tail of a reduce buffer in host memory, whatever its elements are. The
// layout is common/step_tail.h's.
//
// Thread safety: pure functions over their arguments.
#pragma once

#include <cstddef>

#include "common/step_tail.h"
#include "kernels/backend.h"

namespace ringmaster {

// In elements.
size_t TailSize(Element element, int world_size);

// Writes `record` and the times of `rank`, and zeros to the other ranks' times. `tail` is of
// TailSize() for a world of that many ranks.
void WriteTail(const StepRecord& record, const RankTimes& times, int rank, DeviceSpan tail);

// Reads what ranks wrote, or its sum over them.
ReducedRecord ReadTail(DeviceSpan tail, int world_size);

}  // namespace ringmaster
