// Every credential and every channel of every program is made here, and nowhere else.
//
// For now nothing is encrypted or authenticated: whoever reaches the coordinator's port can join
// its run. Keep that port on loopback or on a network of its own.
//
// Thread safety: safe from several threads.
#pragma once

#include <memory>
#include <string>

#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"

namespace ringmaster {

// The largest message either side takes. State and data travel in chunks well below it.
inline constexpr int kMaxMessageBytes = 4 << 20;

// For a server that listens on `address` ("HOST:PORT").
std::shared_ptr<grpc::ServerCredentials> MakeServerCredentials(const std::string& address);

// How a worker notices a coordinator that is out of reach without a word (a partition): while a
// call is open it pings after so long without anything from the other side, and takes the
// connection for broken when so long again brings no answer.
inline constexpr int kKeepaliveMs = 2000;
inline constexpr int kKeepaliveTimeoutMs = 2000;
// A server must not take such pings for an attack: it allows one in so long.
inline constexpr int kAllowedPingIntervalMs = kKeepaliveMs / 4;

// A channel to the coordinator at `address` ("HOST:PORT"). Connects when first used; keepalive as
// above, no proxy, at most 1 s between attempts to connect, of which each may take 2 s.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

// Whether `address` names this machine's loopback interface.
bool IsLoopback(const std::string& address);

}  // namespace ringmaster
