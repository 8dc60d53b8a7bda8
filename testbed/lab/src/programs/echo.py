"""UDP echo. Every line of output is one flow's, or one datagram's, own account of itself.

serve ADDRESS PORT
ask ADDRESS PORT FIRST_PORT COUNT ROUNDS PAUSE_MS random|ping: COUNT flows, each from the next local port
"""

import os
import random
import socket
import sys
import time


def udp(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.socket(family, socket.SOCK_DGRAM)


def serve(address, port):
    own = udp(address)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    own.bind((address, port))
    while True:
        data, peer = own.recvfrom(65535)
        own.sendto(data, peer[:2])
        print("served", *peer[:2], address, port, len(data), len(data), flush=True)


def ask(address, port, first, count, rounds, pause_ms, kind):
    flows = []
    for number in range(count):
        flow = udp(address)
        flow.settimeout(10)
        flow.bind(("", first + number))
        flow.connect((address, port))
        flows.append([flow, 0, 0])
    for _ in range(rounds):
        for entry in flows:
            payload = b"ping" if kind == "ping" else os.urandom(random.randint(16, 1200))
            entry[1] += entry[0].send(payload)
            answer = entry[0].recv(65535)
            if answer != payload:
                sys.exit("another answer than what was sent")
            entry[2] += len(answer)
        time.sleep(pause_ms / 1000)
    for flow, sent, received in flows:
        print("asked", *flow.getsockname()[:2], *flow.getpeername()[:2], sent, received)
        flow.close()


words = sys.argv[2:]
if sys.argv[1] == "serve":
    serve(words[0], int(words[1]))
else:
    ask(words[0], *map(int, words[1:6]), words[6])
