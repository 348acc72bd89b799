#include "cli/network_cut.h"

#include <unistd.h>

#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kStartTime = absl::Seconds(10);
constexpr absl::Duration kEndTime = absl::Seconds(5);

// Run with the process and a name as arguments, in a mount namespace of its own: nft looks for
// cgroups below /sys/fs/cgroup, where not every system has those of version 2. It lives as long as
// its standard input is open, then undoes what it did. nft shows the table when it is in force.
constexpr char kHelper[] = R"sh(
set -eu
pid=$1 name=$2 cgroups=/sys/fs/cgroup
needs() { echo "it needs $1" >&2; exit 1; }
command -v nft >/dev/null || needs "nft (package nftables)"
command -v ss >/dev/null || needs "ss (package iproute2)"
mount -t cgroup2 none $cgroups || needs "cgroups of version 2"
home=$cgroups$(sed -n 's/^0:://p' /proc/$pid/cgroup)
mkdir $cgroups/$name
trap 'echo $pid >$home/cgroup.procs || true; rmdir $cgroups/$name' EXIT
trap '' INT TERM HUP
echo $pid >$cgroups/$name/cgroup.procs
ports=$(ss --tcp --all --numeric --processes --no-header |
  awk -v p="pid=$pid," 'index($0, p) { n = split($4, part, ":"); if (!seen[part[n]]++) printf ", %s", part[n] }')
{
  echo "add table inet $name { flags owner; };" \
    "add chain inet $name in { type filter hook input priority 0; };" \
    "add chain inet $name out { type filter hook output priority 0; };" \
    "add rule inet $name in tcp dport { 0$ports } drop;" \
    "add rule inet $name out tcp sport { 0$ports } drop;" \
    "add rule inet $name in socket cgroupv2 level 1 \"$name\" drop;" \
    "add rule inet $name out socket cgroupv2 level 1 \"$name\" drop"
  echo "list table inet $name"
  cat
} | nft --interactive
)sh";

// Appends what there is; false at the end of the pipe.
bool Drain(int fd, std::string* text) {
  char buffer[4096];
  ssize_t count;
  while ((count = read(fd, buffer, sizeof buffer)) > 0) {
    text->append(buffer, static_cast<size_t>(count));
  }
  return count != 0;
}

}  // namespace

absl::StatusOr<NetworkCut> NetworkCut::Start(pid_t pid) {
  if (geteuid() != 0) {
    return absl::FailedPreconditionError("cutting a process off from the network needs root");
  }
  const std::string name = absl::StrCat("ringmaster_chaos_", pid, "_", getpid());
  RM_ASSIGN_OR_RETURN(Pipe lifeline, MakePipe());
  ChildOptions options;
  options.argv = {"/usr/bin/env", "unshare", "--mount",         "sh", "-c",
                  kHelper,        "sh",      absl::StrCat(pid), name};
  options.descriptors = {{lifeline.read.get(), STDIN_FILENO}};
  options.pipe_stdout = true;
  options.pipe_stderr = true;
  RM_ASSIGN_OR_RETURN(Child helper, Child::Start(options));
  const int out_fd = helper.stdout_fd();
  const int error_fd = helper.stderr_fd();
  NetworkCut cut(std::move(helper), std::move(lifeline.write));
  const absl::Time deadline = absl::Now() + kStartTime;
  std::string out;
  std::string error;
  bool open = true;
  while (open && error.empty() && absl::Now() < deadline) {
    WaitReadable({out_fd, error_fd}, deadline - absl::Now());
    Drain(error_fd, &error);
    open = Drain(out_fd, &out);
    if (out.find("table inet " + name) != std::string::npos) return cut;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("process ", pid, " cannot be cut off from the network: ",
                   error.empty() ? std::string("nft did not answer")
                                 : std::string(absl::StripAsciiWhitespace(error))));
}

NetworkCut::~NetworkCut() {
  if (!lifeline_.valid()) return;
  lifeline_.Close();
  helper_.WaitFor(kEndTime);
}

}  // namespace ringmaster
