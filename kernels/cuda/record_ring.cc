#include "kernels/cuda/record_ring.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/tail_io.h"

namespace ringmaster {
namespace {

absl::StatusOr<float> Microseconds(const CudaEvent& from, const CudaEvent& to) {
  float milliseconds = 0;
  RM_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&milliseconds, from.get(), to.get()));
  return 1000.0f * milliseconds;
}

}  // namespace

absl::StatusOr<RecordRing> RecordRing::Create(int capacity, Element element, int world_size,
                                              cudaStream_t stream) {
  RecordRing ring;
  ring.stream_ = stream;
  ring.element_ = element;
  ring.world_size_ = world_size;
  ring.slots_.resize(capacity);
  for (Slot& slot : ring.slots_) {
    for (CudaEvent& mark : slot.marks) {
      cudaEvent_t event = nullptr;
      RM_CUDA_RETURN_IF_ERROR(cudaEventCreate(&event));
      mark = CudaEvent(event);
    }
  }
  RM_ASSIGN_OR_RETURN(ring.tails_, MappedArray<std::byte>::Create(capacity * ElementBytes(element) *
                                                                  TailSize(element, world_size)));
  RM_ASSIGN_OR_RETURN(ring.intact_, MappedArray<uint32_t>::Create(capacity));
  return ring;
}

DeviceSpan RecordRing::TailAt(std::byte* memory, int slot) const {
  const size_t size = TailSize(element_, world_size_);
  return {memory + slot * size * ElementBytes(element_), size, element_};
}

DeviceSpan RecordRing::tail() const { return TailAt(tails_.device(), next()); }

uint32_t* RecordRing::intact() const { return intact_.device() + next(); }

absl::Status RecordRing::Record(Mark mark) {
  RM_CUDA_RETURN_IF_ERROR(cudaEventRecord(slots_[next()].marks[mark].get(), stream_));
  return absl::OkStatus();
}

absl::Status RecordRing::Begin() {
  if (outstanding_ == capacity()) {
    return absl::FailedPreconditionError(absl::StrCat(
        outstanding_, " records are outstanding, as many as there may be: call Collect() first"));
  }
  return Record(kStart);
}

absl::Status RecordRing::GradientReady() { return Record(kGradient); }

absl::Status RecordRing::BeginUpdate() { return Record(kUpdate); }

absl::Status RecordRing::Publish(bool timed) {
  RM_RETURN_IF_ERROR(Record(kEnd));
  slots_[next()].timed = timed;
  ++outstanding_;
  return absl::OkStatus();
}

absl::StatusOr<RankTimes> RecordRing::TimesOf(const Slot& slot) const {
  RM_ASSIGN_OR_RETURN(const float gradient,
                      Microseconds(slot.marks[kStart], slot.marks[kGradient]));
  RM_ASSIGN_OR_RETURN(const float all_reduce,
                      Microseconds(slot.marks[kGradient], slot.marks[kUpdate]));
  RM_ASSIGN_OR_RETURN(const float update, Microseconds(slot.marks[kUpdate], slot.marks[kEnd]));
  return RankTimes{gradient + update, all_reduce};
}

absl::StatusOr<bool> RecordRing::TakeFinished(Finished* finished) {
  if (outstanding_ == 0) return false;
  const Slot& slot = slots_[oldest_];
  const cudaError_t state = cudaEventQuery(slot.marks[kEnd].get());
  if (state == cudaErrorNotReady) return false;
  RM_RETURN_IF_ERROR(CudaStatus(state, "cudaEventQuery"));
  *finished = Finished();
  finished->intact = intact_.host()[oldest_] != 0;
  if (finished->intact) {
    finished->reduced = ReadTail(TailAt(tails_.host(), oldest_), world_size_);
  }
  if (slot.timed) {
    RM_ASSIGN_OR_RETURN(finished->times, TimesOf(slot));
  }
  oldest_ = (oldest_ + 1) % capacity();
  --outstanding_;
  return true;
}

}  // namespace ringmaster
