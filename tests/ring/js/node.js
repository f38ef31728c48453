// A js-libp2p node in Spegel's Kademlia, driven by lines of JSON: {"provide": key} and {"find": key}.
// Keys are strings, made into CIDs as Go Spegel does: CIDv1, raw, sha2-256 of the string.
import './node20.js'
import readline from 'node:readline'
import { createHash } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'

const cidOf = (key) => CID.createV1(0x55, Digest.create(0x12, createHash('sha256').update(key).digest()))

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionMonitor: { enabled: false },
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({ protocol: '/spegel/kad/1.0.0', clientMode: false, peerInfoMapper: passthroughMapper })
  }
})

const say = (answer) => process.stdout.write(JSON.stringify(answer) + '\n')
const table = () => [...node.services.dht.routingTable.kb.toIterable()].map((peer) => peer.peerId.toString())

const commands = {
  async dial (address) {
    await node.dial(multiaddr(address), { signal: AbortSignal.timeout(5000) })
    return true
  },
  async table () {
    return table()
  },
  async provide (key) {
    for await (const event of node.services.dht.provide(cidOf(key), { signal: AbortSignal.timeout(8000) })) {
      if (event.name === 'QUERY_ERROR') return event.error?.message ?? 'error'
    }
    return true
  },
  async find (key) {
    const found = {}
    for await (const event of node.services.dht.findProviders(cidOf(key), { signal: AbortSignal.timeout(8000) })) {
      if (event.name === 'PROVIDER') {
        for (const peer of event.providers) found[peer.id.toString()] = peer.multiaddrs.map(String)
      }
    }
    return found
  }
}

say({ id: node.peerId.toString(), addrs: node.getMultiaddrs().map(String) })
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [[command, argument]] = Object.entries(JSON.parse(line))
  try {
    say({ answer: await commands[command](argument) })
  } catch (error) {
    say({ error: String(error) })
  }
}
await node.stop()
