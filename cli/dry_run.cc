#include "cli/dry_run.h"

#include <algorithm>
#include <cstdio>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/text.h"
#include "common/identity.h"
#include "common/model_choice.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr int kMostRanksShown = 16;

std::string ModelRow(const std::string& layer, const std::string& width, const std::string& count) {
  return absl::StrFormat("  %-28s %12s %14s\n", layer, width, count);
}

std::string ShardCell(PositionRange slice) {
  if (slice.count == 0) return "none";
  return absl::StrFormat("%d..%d (%d)", slice.first, slice.end() - 1, slice.count);
}

std::string Describe(const Settings& settings, const NodeLayout& layout, const NodeSurvey& survey) {
  const std::string host = HostName();
  const std::string listen = settings.listen.empty() ? "127.0.0.1, a free port" : settings.listen;
  const std::string run_dir =
      settings.run_dir.empty() ? absl::StrCat("runs/<UTC time>-", settings.name) : settings.run_dir;
  std::string workers =
      absl::StrCat(layout.processes, layout.processes == 1 ? " process" : " processes", " on ",
                   layout.cuda ? "GPU" : "CPU", ", because ", layout.reason);
  if (!layout.cuda) {
    absl::StrAppend(&workers, "; threads each: ",
                    ThreadsPerProcess(settings.threads, survey.cores, layout.processes));
  }
  const char* all_reduce = layout.processes == 1 ? "none (one process)"
                           : layout.cuda         ? "NCCL"
                                                 : "Gloo";
  return absl::StrFormat(
      "Where\n  coordinator    %s, %s\n  workers        %s, %s\n  all-reduce     %s\n"
      "  run directory  %s\n  report         %s\n",
      host, listen, host, workers, all_reduce, run_dir,
      settings.report.empty() ? run_dir + "/report.json" : settings.report);
}

}  // namespace

std::string DescribeModel(const ModelSpec& model) {
  const std::string rule = absl::StrCat("  ", std::string(56, '-'), "\n");
  std::string text = "Model\n" + ModelRow("layer", "output", "parameters") + rule;
  text += ModelRow("flatten", absl::StrCat(model.inputs()), "0");
  for (int i = 0; i < model.num_layers(); ++i) {
    const bool last = i + 1 == model.num_layers();
    const uint64_t in = model.layers[i];
    const uint64_t out = model.layers[i + 1];
    const std::string name = i == 0 ? "dense" : absl::StrCat("dense_", i);
    text += ModelRow(name + (last ? " (Dense, softmax)" : " (Dense, ReLU)"), absl::StrCat(out),
                     WithCommas(in * out + out));
  }
  const uint64_t total = model.num_parameters();
  return text + rule + ModelRow("total", "", WithCommas(total)) +
         absl::StrFormat("  %s bytes of fp32 gradient a step\n", WithCommas(4 * total));
}

std::string DescribeShards(const SamplingPlan& plan, uint32_t epochs, int world_size) {
  const uint32_t steps = plan.steps_per_epoch();
  const uint32_t last = plan.Batch(steps - 1).count;
  std::string text = absl::StrFormat(
      "Shard plan\n  %s samples, global batch %s: %s steps an epoch (the last of %s), %s in %d "
      "epoch%s\n  positions of the epoch's order that each rank computes:\n",
      WithCommas(plan.num_samples), WithCommas(plan.global_batch), WithCommas(steps),
      WithCommas(last), WithCommas(uint64_t{steps} * epochs), epochs, epochs == 1 ? "" : "s");
  const std::set<uint32_t> shown = {0, std::min(1u, steps - 1), steps - 1};
  text += absl::StrFormat("  %6s", "rank");
  for (const uint32_t step : shown)
    absl::StrAppendFormat(&text, "  %-22s", absl::StrCat("step ", step));
  text += "\n";
  for (int rank = 0; rank < std::min(world_size, kMostRanksShown); ++rank) {
    absl::StrAppendFormat(&text, "  %6d", rank);
    for (const uint32_t step : shown) {
      absl::StrAppendFormat(&text, "  %-22s",
                            ShardCell(plan.Slice(plan.Batch(step), rank, world_size)));
    }
    text += "\n";
  }
  if (world_size > kMostRanksShown) {
    absl::StrAppendFormat(&text, "  ... and %d ranks more\n", world_size - kMostRanksShown);
  }
  return text;
}

absl::Status PrintDryRun(const Settings& settings, const NodeLayout& layout,
                         const NodeSurvey& survey) {
  RM_ASSIGN_OR_RETURN(const DatasetFiles files, ReadDatasetFiles(settings.data_dir));
  RM_ASSIGN_OR_RETURN(const Dataset dataset, DecodeDataset(files));
  RM_ASSIGN_OR_RETURN(const ModelSpec model, ModelFor(settings, dataset));
  const SamplingPlan plan{settings.seed, dataset.train.num_samples, settings.global_batch,
                          SliceGranularity(settings.reproducible)};
  const std::string data = absl::StrFormat(
      "Data\n  %s\n  %s training and %s test images of %d x %d, %d classes\n  digest %s\n",
      settings.data_dir, WithCommas(dataset.train.num_samples),
      WithCommas(dataset.test.num_samples), dataset.rows, dataset.columns, dataset.num_classes,
      DatasetDigest(files));
  std::printf("%s\n%s\n%s\n%s\nDry run: nothing was started or written.\n", data.c_str(),
              DescribeModel(model).c_str(),
              DescribeShards(plan, settings.epochs, layout.processes).c_str(),
              Describe(settings, layout, survey).c_str());
  return absl::OkStatus();
}

}  // namespace ringmaster
