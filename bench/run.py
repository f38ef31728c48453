# One run, table by table: the servers of a table are all up while it is measured, and none else.  The stop with a
# stalled reader mostly waits, so the memory of other sidecars is looked at meanwhile.

"""Takes all measurements of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import lifecycle, proc
from bench.arena import Arena
from bench.cold import ColdSampler
from bench.content import Content
from bench.figures import Results
from bench.process import Server, ServerError, running
from bench.programs import GO, NGINX, REGISTRY, SPEGEL, Programs
from bench.rounds import Client, Sampler
from bench.tls import TlsClient
from bench.tools import Tools
from bench.workload import MANIFESTS, MIRROR, MIRROR_TLS, OWN, OWN_TLS, RANGES, Plan

Say = Callable[[str], None]


class Run:
    """``scratch`` is a directory for logs and configuration files; ``say`` is told what is going on."""

    def __init__(self, plan: Plan, arena: Arena, tools: Tools, content: Content, scratch: Path, say: Say) -> None:
        self._plan = plan
        self._arena = arena
        self._tools = tools
        self._content = content
        self._scratch = scratch
        self._say = say
        self._client = Client(tools.drain, content)
        self._gate = proc.Gate(plan.patience, plan.budget)
        self._programs = Programs(tools, content, scratch)
        self.results = Results(graceful_timeout=lifecycle.graceful_timeout())

    def missing(self) -> list[str]:
        """What is left out, and why."""
        found = list(self._tools.missing)
        if not self._programs.abilities.can_skip_verification:
            found.append("spegel: no --verify, so nothing is measured unverified")
        return found

    def all(self, only: str | None = None) -> ServerError | None:
        """Measure all, or ``only`` "own" or "mirrored" blobs, or both over TLS ("tls").

        What was found until the error that is returned is in ``results`` all the same.
        """
        try:
            if only in (None, "own"):
                self._own()
            if only in (None, "mirrored") and self._tools.nginx is not None:
                self._mirrors()
            if only in (None, "tls"):
                self._encrypted()
            if only is None:
                self._lifecycle()
        except ServerError as exc:
            return exc
        return None

    def _own(self) -> None:
        programs = [each for each in self._programs.own() if self._plan.registry or each.name != REGISTRY]
        self._say(f"own blobs, ranges, manifests, cold cache: {'; '.join(each.name for each in programs)}")
        helpers = [program for program in [self._programs.containerd()] if program is not None]
        with (
            running(helpers, self._arena.client_core, self._scratch) as asked,
            running(programs, self._arena.server_core, self._scratch) as servers,
        ):
            self._note_starts(servers)
            # with a cache for manifests or without is all the same to blobs
            blobs = [server for server in servers if server.name in (SPEGEL, GO, NGINX, REGISTRY)]
            self._table(OWN, blobs)
            self._table(RANGES, [server for server in blobs if server.name != REGISTRY])
            self._table(MANIFESTS, servers, helpers=tuple(asked))
            self._say("cold page cache")
            sampler = ColdSampler(self._client, self._tools.probe, self._content, self._gate)
            cold = [server for server in blobs if server.name != REGISTRY]
            self.results.cold += sampler.rounds(cold, self._plan.cold_rounds)
            if not self.results.cold:
                self._say("the page cache can't be emptied of files here: no cold transfers")

    def _mirrors(self) -> None:
        programs = self._programs.mirrors()
        self._say(f"mirrored blobs: {'; '.join(each.name for each in programs)}")
        with self._neighbour() as source, running(programs, self._arena.server_core, self._scratch) as servers:
            self._note_starts(servers)
            self._wait_found(servers)
            self._table(MIRROR, servers, helpers=(source,))

    def _encrypted(self) -> None:
        if self._tools.tls_drain is None:
            return
        client = TlsClient(self._tools.tls_drain, self._content)
        programs = self._programs.own_tls()
        self._say(f"own blobs over TLS: {'; '.join(each.name for each in programs)}")
        with running(programs, self._arena.server_core, self._scratch) as servers:
            self._note_starts(servers)
            self._table(OWN_TLS, servers, client=client)
        self._say(f"all over {client.cipher}")
        if self._tools.nginx is None:
            return
        programs = self._programs.mirrors_tls()
        self._say(f"mirrored blobs over TLS: {'; '.join(each.name for each in programs)}")
        with (
            self._neighbour(tls=True) as source,
            running(programs, self._arena.server_core, self._scratch) as servers,
        ):
            self._note_starts(servers)
            self._wait_found(servers)
            self._table(MIRROR_TLS, servers, helpers=(source,))

    @contextmanager
    def _neighbour(self, *, tls: bool = False) -> Iterator[Server]:
        """The nginx that has the content, and a member of the ring that says so."""
        helpers = [self._programs.source(tls=tls), self._programs.announcer(tls=tls)]
        with running(helpers, self._arena.client_core, self._scratch) as servers:
            yield servers[0]

    def _wait_found(self, servers: list[Server]) -> None:
        """Wait until the ring has told them where the content is."""
        for server in servers:
            for piece in self._content.pieces.values():
                server.wait_ready(piece.target)

    def _table(
        self, table: str, servers: list[Server], helpers: tuple[Server, ...] = (), client: TlsClient | None = None
    ) -> None:
        workloads = self._plan.of(table)
        sampler = Sampler(client or self._client, self._gate, self._plan.seconds, helpers)
        sampler.warm(servers, workloads)
        for sample in sampler.rounds(servers, workloads, self._plan.rounds):
            self.results.samples.append(sample)

    def _lifecycle(self) -> None:
        self._say("memory, start and stop of a sidecar")
        core = self._arena.server_core
        own = self._programs.sidecar(SPEGEL)
        with running([self._programs.sidecar("stalled")], core, self._scratch) as stalled:
            self._note_starts(stalled)
            with lifecycle.StalledStop(stalled[0], self._content) as stopping:
                with running([own], core, self._scratch) as servers:
                    self._note_starts(servers)
                    self.results.own_memory = self._memory(servers[0])
                # whoever stops needs the core to itself at the end
                self.results.stalled_stop = stopping.seconds()
        if self._plan.mirror_memory and self._tools.nginx is not None:
            with self._neighbour(), running([self._programs.mirror()], core, self._scratch) as servers:
                self._note_starts(servers)
                self._wait_found(servers)
                self.results.mirror_memory = self._memory(servers[0])

    def _memory(self, server: Server) -> lifecycle.Memory:
        return lifecycle.memory(server, self._client, self._plan.memory_seconds)

    def _note_starts(self, servers: list[Server]) -> None:
        self.results.starts += [server.started_in for server in servers if "spegel_consul" in server.program.command]
