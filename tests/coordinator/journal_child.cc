// journal_child DIR COUNT: opens the journal in DIR, says "open N" (the last entry it has), appends
// COUNT entries after it and says "kept N" whenever N and all before it are durable. Rotates now
// and then. An error is said ("failed ...") and the call repeated, at most kAttempts times.
//
// Something to be killed at every system call. See journal_crash_test.cc.

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/journal.h"
#include "tests/coordinator/numbered_entries.h"

namespace ringmaster {
namespace {

constexpr int kAttempts = 20;

// Unbuffered: what is said is said, however the process ends.
void Say(const std::string& line) {
  const std::string bytes = line + "\n";
  if (write(STDOUT_FILENO, bytes.data(), bytes.size()) < 0) _exit(3);
}

bool CommitAtLast(Journal* journal) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const absl::Status status = journal->Commit();
    if (status.ok()) return true;
    Say(absl::StrCat("failed ", std::string(status.message())));
  }
  return false;
}

int Run(const std::string& directory, uint64_t count) {
  std::vector<std::string> entries;
  std::string note;
  const auto journal = FileJournal::Open(directory, &entries, &note);
  if (!journal.ok()) {
    Say(absl::StrCat("failed ", std::string(journal.status().message())));
    return 1;
  }
  if (!LastNumber(entries)) {
    Say("mix");
    return 2;
  }
  const uint64_t first = *LastNumber(entries);
  Say(absl::StrCat("open ", first));
  for (uint64_t number = first + 1; number <= first + count; ++number) {
    (*journal)->Append(NumberedEntry(number));
    if (number % 7 == 0) {
      const absl::Status status = (*journal)->Rotate(NumberedSnapshot(number));
      if (!status.ok()) Say(absl::StrCat("failed ", std::string(status.message())));
    }
    if (number % 3 == 0) continue;  // two in one commit
    if (!CommitAtLast(journal->get())) return 1;
    Say(absl::StrCat("kept ", number));
  }
  return 0;
}

}  // namespace
}  // namespace ringmaster

int main(int argc, char** argv) {
  return argc == 3 ? ringmaster::Run(argv[1], std::strtoull(argv[2], nullptr, 10)) : 2;
}
