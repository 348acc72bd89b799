// SHA-256 (FIPS 180-4), computed by OpenSSL.
//
// Thread safety: Sha256Hex is pure; a Sha256 belongs to one thread at a time.
#pragma once

#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace ringmaster {

// Digests bytes that come in pieces. Cannot fail: without OpenSSL's SHA-256 the program aborts.
class Sha256 {
 public:
  Sha256();

  void Update(std::string_view bytes);
  // The digest in lower-case hex. Call once; nothing may follow.
  std::string FinishHex();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

// The digest of `bytes` in lower-case hex.
std::string Sha256Hex(std::string_view bytes);

}  // namespace ringmaster
