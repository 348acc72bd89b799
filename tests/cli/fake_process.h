// Processes that look like ours: a program of the system under the name of one of ours.
#pragma once

#include <sched.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/subprocess.h"
#include "gtest/gtest.h"
#include "tests/temporary_directory.h"

namespace ringmaster {

// Starts `program` (a path) as `directory`/`name`, and waits until /proc shows it: posix_spawn
// returns a moment before.
inline Child StartAs(const TemporaryDirectory& directory, const std::string& name,
                     const std::string& program, const std::vector<std::string>& args) {
  const std::string path = directory.File(name);
  if (!std::filesystem::exists(path)) std::filesystem::create_symlink(program, path);
  ChildOptions options;
  options.argv = {path};
  options.argv.insert(options.argv.end(), args.begin(), args.end());
  auto child = Child::Start(options);
  EXPECT_TRUE(child.ok()) << child.status();
  const std::string command_line = absl::StrCat("/proc/", child->pid(), "/cmdline");
  while (!child->Poll() && !ReadFile(command_line).value_or("").starts_with(path)) sched_yield();
  return *std::move(child);
}

// One that does nothing for as long as a test may take.
inline Child StartIdleAs(const TemporaryDirectory& directory, const std::string& name) {
  return StartAs(directory, name, "/bin/sleep", {"600"});
}

}  // namespace ringmaster
