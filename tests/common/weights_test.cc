#include "common/weights.h"

#include <string>
#include <vector>

#include "common/file.h"
#include "common/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class WeightsTest : public ::testing::Test {
 protected:
  // Tensors of 2 -> 3 -> 1, as another program might write them.
  std::vector<TensorView> Tensors() const {
    return {{"dense_1/bias", {1}, std::span(values_).subspan(12, 1)},
            {"dense/bias", {3}, std::span(values_).subspan(6, 3)},
            {"dense_1/kernel", {3, 1}, std::span(values_).subspan(9, 3)},
            {"dense/kernel", {2, 3}, std::span(values_).subspan(0, 6)}};
  }

  void Write(const std::vector<TensorView>& tensors) {
    ASSERT_EQ(WriteFileAtomically(path_, EncodeSafetensors(tensors)), absl::OkStatus());
  }

  void ExpectRefused(const std::vector<TensorView>& tensors, const std::string& part) {
    Write(tensors);
    const absl::Status status = LoadWeights(path_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }

  TemporaryDirectory directory_;
  const std::string path_ = directory_.File("weights.safetensors");
  const std::vector<float> values_ = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
};

TEST_F(WeightsTest, RoundTrip) {
  for (const ModelSpec& model : {ModelSpec(), ModelSpec{{2, 1}}, ModelSpec{{7, 5, 3, 2}}}) {
    const std::vector<float> parameters = InitialState(model, 1).parameters;
    ASSERT_EQ(SaveWeights(path_, model, parameters), absl::OkStatus());
    const auto weights = LoadWeights(path_);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->model, model);
    EXPECT_EQ(weights->parameters, parameters);
  }
}

TEST_F(WeightsTest, NamesAndShapesAreKeras) {
  const ModelSpec model;
  ASSERT_EQ(SaveWeights(path_, model, InitialState(model, 1).parameters), absl::OkStatus());
  const auto file = DecodeSafetensors(ReadFile(path_).value());
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::string> names;
  for (const Tensor& tensor : file->tensors) names.push_back(tensor.name);
  EXPECT_THAT(names, ElementsAre("dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"));
  EXPECT_THAT(file->tensors[0].shape, ElementsAre(784, 128));
  EXPECT_THAT(file->tensors[3].shape, ElementsAre(10));
}

TEST_F(WeightsTest, TheOrderInTheFileDoesNotMatter) {
  Write(Tensors());
  const auto weights = LoadWeights(path_);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_THAT(weights->model.layers, ElementsAre(2, 3, 1));
  EXPECT_EQ(weights->parameters, values_);
}

TEST_F(WeightsTest, MissingFileIsNotFound) {
  const absl::Status status = LoadWeights(path_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

TEST_F(WeightsTest, FileThatIsNoSafetensors) {
  ASSERT_EQ(WriteFileAtomically(path_, "these are not weights"), absl::OkStatus());
  const absl::Status status = LoadWeights(path_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  EXPECT_THAT(std::string(status.message()), HasSubstr("not a safetensors file"));
}

TEST_F(WeightsTest, TensorsThatMakeNoModel) {
  auto tensors = Tensors();
  tensors.pop_back();
  ExpectRefused(tensors, "there is no dense/kernel");
  tensors = Tensors();
  tensors.erase(tensors.begin());
  ExpectRefused(tensors, "there is no dense_1/bias");
  tensors = Tensors();
  tensors.push_back({"embedding", {1}, std::span(values_).first(1)});
  ExpectRefused(tensors, "there is no place for embedding");
  tensors = Tensors();
  tensors[2].name = "dense_2/kernel";
  ExpectRefused(tensors, "there is no place for dense_");
}

TEST_F(WeightsTest, ShapesThatDoNotFit) {
  auto tensors = Tensors();
  tensors[3].shape = {6};
  ExpectRefused(tensors, "dense/kernel has the shape [6]");
  tensors = Tensors();
  tensors[1] = {"dense/bias", {2}, std::span(values_).first(2)};
  ExpectRefused(tensors, "dense/bias has the shape [2], but the layers beside it want [3]");
  tensors = Tensors();
  tensors[2].shape = {1, 3};
  ExpectRefused(tensors, "dense_1/kernel has the shape [1, 3]");
  ExpectRefused({{"dense/kernel", {0, 3}, {}}}, "width 0 of the model is 0");
  ExpectRefused({{"dense/kernel", {0, int64_t{1} << 40}, {}}}, "[0, 1099511627776]");
}

TEST_F(WeightsTest, SavesOnlyWhatFits) {
  const absl::Status status = SaveWeights(path_, ModelSpec(), values_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("13 parameters, but the model has 101770"));
  EXPECT_EQ(SaveWeights(path_, ModelSpec{{3}}, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(directory_.List(), IsEmpty());
}

}  // namespace
}  // namespace ringmaster
