#include "worker/cuda_loader.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr char kModuleFile[] = "libringmaster_cuda.so";

// What the module links, each before what depends on it: once open, the linker takes them by their
// names wherever they came from. (CUDA's runtime is linked statically into the module.)
constexpr const char* kNvidiaLibraries[] = {
    "libcublasLt.so." RINGMASTER_CUDA_MAJOR,
    "libcublas.so." RINGMASTER_CUDA_MAJOR,
    "libnccl.so.2",
};

std::string Environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string ProgramDirectory() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  if (length <= 0) return "";
  const std::string_view program(path, static_cast<size_t>(length));
  return std::string(program.substr(0, program.rfind('/')));
}

void AppendMatches(const std::string& pattern, std::vector<std::string>* directories) {
  glob_t matches;
  if (glob(pattern.c_str(), GLOB_ONLYDIR | GLOB_BRACE, nullptr, &matches) == 0) {
    directories->insert(directories->end(), matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  }
  globfree(&matches);
}

void AppendToolkits(std::vector<std::string>* directories) {
  for (const std::string& root : {Environment("CUDA_HOME"), std::string("/usr/local/cuda")}) {
    if (root.empty()) continue;
    directories->push_back(absl::StrCat(root, "/lib64"));
    directories->push_back(absl::StrCat(root, "/lib"));
  }
}

// Where Python would look, without starting it: the active environment, the user's packages, the
// system's.
void AppendWheels(std::vector<std::string>* directories) {
  const std::string home = Environment("HOME");
  std::vector<std::string> roots = {Environment("VIRTUAL_ENV"), Environment("CONDA_PREFIX")};
  if (!home.empty()) roots.push_back(absl::StrCat(home, "/.local"));
  roots.insert(roots.end(), {"/usr/local", "/usr"});
  for (const std::string& root : roots) {
    if (root.empty()) continue;
    AppendMatches(absl::StrCat(root, "/lib/python3*/{site,dist}-packages/nvidia/*/lib"),
                  directories);
  }
}

std::string PathIn(const std::string& directory, const char* file) {
  return directory.empty() ? file : absl::StrCat(directory, "/", file);
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// Opens a library of the first directory that has a usable one. Where none has, the module itself
// fails to open, and then the linker names what it misses.
void OpenNvidiaLibrary(const char* file, const std::vector<std::string>& directories) {
  for (const std::string& directory : directories) {
    const std::string path = PathIn(directory, file);
    if (!directory.empty() && !Exists(path)) continue;
    if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return;
  }
}

absl::Status NoModule() {
  return absl::NotFoundError(
      absl::StrCat("there is no ", kModuleFile,
                   " beside this program, in --cuda-libs or on the linker's path: this is a build "
                   "without CUDA"));
}

// The module's path; its bare name if only the linker may know it.
absl::StatusOr<std::string> FindModule(const std::vector<std::string>& directories) {
  bool asks_linker = false;
  for (const std::string& directory : directories) {
    const std::string path = PathIn(directory, kModuleFile);
    if (directory.empty()) {
      asks_linker = true;
    } else if (Exists(path)) {
      return path;
    }
  }
  if (asks_linker) return kModuleFile;
  return NoModule();
}

absl::Status OpenError(const std::string& path, std::string_view reason) {
  if (reason.starts_with(absl::StrCat(kModuleFile, ": cannot open"))) return NoModule();
  return absl::UnavailableError(
      absl::StrCat(path, " does not load: ", std::string(reason),
                   " (looked for NVIDIA's libraries beside this program, in --cuda-libs, on the "
                   "linker's path, in the CUDA toolkit and in Python's nvidia packages)"));
}

absl::StatusOr<const CudaModule*> CheckModule(void* handle, const std::string& path) {
  const auto function = reinterpret_cast<CudaModuleFunction>(dlsym(handle, kCudaModuleSymbol));
  if (function == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is of another version: it has no ",
                                                      kCudaModuleSymbol,
                                                      ". Install the one built with this program"));
  }
  const CudaModule* const module = function();
  if (module->abi != kCudaModuleAbi) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is of another version: interface ",
                                                      module->abi, ", wanted ", kCudaModuleAbi,
                                                      ". Install the one built with this program"));
  }
  return module;
}

}  // namespace

std::vector<std::string> CudaSearchPath(const std::string& cuda_libs) {
  std::vector<std::string> directories;
  if (const std::string program = ProgramDirectory(); !program.empty()) {
    directories = {program, absl::StrCat(program, "/../lib")};
  }
  for (const auto& directory : absl::StrSplit(cuda_libs, ':', absl::SkipEmpty())) {
    directories.emplace_back(directory);
  }
  directories.emplace_back();  // the linker's own paths
  AppendToolkits(&directories);
  AppendWheels(&directories);
  return directories;
}

absl::StatusOr<const CudaModule*> LoadCudaModuleFrom(const std::vector<std::string>& directories) {
  RM_ASSIGN_OR_RETURN(const std::string path, FindModule(directories));
  // Half a gigabyte of libraries is not opened for a module that is not there.
  if (path != kModuleFile) {
    for (const char* library : kNvidiaLibraries) OpenNvidiaLibrary(library, directories);
  }
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return OpenError(path, dlerror());
  return CheckModule(handle, path);
}

absl::StatusOr<const CudaModule*> LoadCudaModule(const std::string& cuda_libs) {
  static Mutex mutex;
  static const CudaModule* opened = nullptr;
  MutexLock lock(&mutex);
  if (opened == nullptr) {
    RM_ASSIGN_OR_RETURN(opened, LoadCudaModuleFrom(CudaSearchPath(cuda_libs)));
  }
  return opened;
}

}  // namespace ringmaster
