// Trained weights as a file: safetensors with Keras's names and shapes, which is all it takes to
// know the model again.
//
// Thread safety: pure but for the file; safe from any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"

namespace ringmaster {

struct Weights {
  ModelSpec model;
  std::vector<float> parameters;  // [model.num_parameters()], laid out as model.h says
};

// Replaces the file at `path` as WriteFileAtomically does, and with its codes. INVALID_ARGUMENT:
// the model is not valid, or `parameters` is not of its size.
absl::Status SaveWeights(const std::string& path, const ModelSpec& model,
                         const std::vector<float>& parameters);

// Reads what SaveWeights wrote, or the same tensors from another program, in any order, or a
// checkpoint, which is verified first; tensors named "optimizer/..." are passed over. NOT_FOUND: no
// such file. INVALID_ARGUMENT: not safetensors, or not the tensors of a ModelSpec. DATA_LOSS: a
// damaged checkpoint. Errors of the file system keep their code. The message names `path`.
absl::StatusOr<Weights> LoadWeights(const std::string& path);

}  // namespace ringmaster
