#include "coordinator/run_directory.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

namespace fs = std::filesystem;

constexpr char kRuns[] = "runs";
// Runs of one name that begin in the same second.
constexpr int kMostTwins = 1000;

absl::Status CheckRunDirectory(const std::string& run_dir, const std::string& resume) {
  std::error_code error;
  if (!fs::exists(run_dir, error)) return absl::OkStatus();
  if (fs::is_directory(run_dir, error) && fs::is_empty(run_dir, error) && !error) {
    return absl::OkStatus();
  }
  if (fs::is_directory(run_dir + "/journal", error)) {
    if (resume == "auto") return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "--run-dir ", run_dir, " holds a run, and --resume ", resume,
        " asks for a new one; nothing was written. Choose another directory, or --resume auto to "
        "go on with that run"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--run-dir ", run_dir,
      " is not a new or empty directory; nothing was written. Choose another, or empty it"));
}

absl::Status CheckReport(const std::string& report) {
  std::error_code error;
  const fs::path folder = fs::absolute(report, error).parent_path();
  // It is replaced as a whole, which would be the end of a device or a pipe.
  if (fs::exists(report, error) && !fs::is_regular_file(report, error)) {
    return absl::InvalidArgumentError(absl::StrCat("--report ", report, " is not a regular file"));
  }
  if (access(folder.c_str(), W_OK | X_OK) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--report ", report, ": cannot write to ",
                                                   folder.string(), ": ",
                                                   std::generic_category().message(errno)));
  }
  return absl::OkStatus();
}

absl::Status FileError(const std::error_code& error, const std::string& what) {
  return absl::ErrnoToStatus(error.value(), what);
}

// Points runs/latest at `target`, in one step for whoever looks.
void LinkLatest(const fs::path& target) {
  const fs::path link = fs::path(kRuns) / "latest";
  const fs::path fresh = fs::path(kRuns) / absl::StrCat(".latest-", getpid());
  std::error_code error;
  fs::create_directory_symlink(target.filename(), fresh, error);
  if (!error) fs::rename(fresh, link, error);
  if (!error) return;
  spdlog::warn("cannot point {} at {}: {}", link.string(), target.string(), error.message());
  fs::remove(fresh, error);
}

absl::StatusOr<std::string> MakeDefaultDirectory(const std::string& name, absl::Time now) {
  std::error_code error;
  fs::create_directories(kRuns, error);
  if (error) return FileError(error, absl::StrCat("cannot make the directory ", kRuns));
  const std::string stem =
      absl::StrCat(absl::FormatTime("%Y%m%d-%H%M%S", now, absl::UTCTimeZone()), "-", name);
  for (int twin = 1; twin <= kMostTwins; ++twin) {
    const fs::path path = fs::path(kRuns) / (twin == 1 ? stem : absl::StrCat(stem, "-", twin));
    if (fs::create_directory(path, error)) {
      LinkLatest(path);
      return path.string();
    }
    if (error) return FileError(error, absl::StrCat("cannot make the directory ", path.string()));
  }
  return absl::ResourceExhaustedError(absl::StrCat("too many runs called ", stem));
}

}  // namespace

absl::Status CheckOutputs(const Settings& settings) {
  if (!settings.run_dir.empty()) {
    RM_RETURN_IF_ERROR(CheckRunDirectory(settings.run_dir, settings.resume));
  }
  if (!settings.report.empty()) RM_RETURN_IF_ERROR(CheckReport(settings.report));
  return absl::OkStatus();
}

absl::StatusOr<std::string> MakeRunDirectory(const Settings& settings, absl::Time now) {
  if (settings.run_dir.empty()) return MakeDefaultDirectory(settings.name, now);
  RM_RETURN_IF_ERROR(CheckRunDirectory(settings.run_dir, settings.resume));
  std::error_code error;
  fs::create_directories(settings.run_dir, error);
  if (error) return FileError(error, absl::StrCat("cannot make the directory ", settings.run_dir));
  return settings.run_dir;
}

}  // namespace ringmaster
