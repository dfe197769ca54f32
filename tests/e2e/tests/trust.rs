//! Roots that the host sends: every tool of the guest goes by them, containers and build steps too, and images keep nothing of it.
//!
//! The host's part is played over the agent's own socket in the guest, which speaks the same protocol.

use e2e::{Case, Verdict, World, ensure};

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("tools_containers_and_build_steps_go_by_the_hosts_roots", roots),
    ("sessions_are_told_of_the_hosts_roots_and_variables", variables),
    ("java_goes_by_the_hosts_roots_and_ours", java),
];

/// Makes a root and a server's certificate, and what speaks for the host: `trust.py FILE...` and `server.py`.
const PREPARE: &str = r#"set -e
mkdir -p trust && cd trust
cat > trust.py <<'P'
import socket, ssl, struct, sys
def field(number, content):
    length, varint = len(content), b''
    while length > 0x7f: length, varint = length >> 7, varint + bytes([length & 0x7f | 0x80])
    return bytes([number << 3 | 2]) + varint + bytes([length]) + content
def frame(kind, body): return struct.pack('<IB', len(body), kind) + body
agent = socket.socket(socket.AF_UNIX)
agent.connect('/run/vivarium/agent.sock')
stream = agent.makefile('rwb')
def hear():
    length, kind = struct.unpack('<IB', stream.read(5))
    return kind, stream.read(length)
def ask(operation):
    stream.write(frame(0x10, b'\x08\x07' + operation))
    stream.flush()
    while (answer := hear())[0] != 0x11: pass
    assert answer[1] == b'\x08\x07\x12\x00', answer
stream.write(frame(1, b'\x08\x01\x10\x01\x18\x01'))
stream.flush()
assert hear()[0] == 2
ask(field(10, b''.join(field(1, ssl.PEM_cert_to_DER_cert(open(file).read())) for file in sys.argv[1:])))
ask(field(11, field(1, b'E2E_PLACEHOLDER=p q=r')))
P
cat > server.py <<'P'
import http.server, ssl
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *words): pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('server.crt', 'server.key')
server = http.server.ThreadingHTTPServer(('0.0.0.0', 8443), Answer)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
P
key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
[ -e root.crt ] || openssl req -x509 $key -keyout root.key -out root.crt -subj '/O=Größe  X/CN=Test Root' -utf8 -addext keyUsage=critical,keyCertSign -days 9 2>&1
openssl req $key -keyout server.key -out server.csr -subj /CN=server 2>&1
printf 'subjectAltName=IP:127.0.0.1,IP:172.17.0.1\nauthorityKeyIdentifier=keyid\n' > names
openssl x509 -req -in server.csr -CA root.crt -CAkey root.key -CAcreateserial -days 9 -extfile names -out server.crt 2>&1
serve() {
  python3 server.py >/dev/null 2>&1 & server=$!
  trap 'kill $server' EXIT
  for _ in $(seq 300); do curl -kso /dev/null https://127.0.0.1:8443/ && return 0; sleep 0.2; done
  return 1
}
"#;

fn roots(world: &World) -> Case {
    let script = r#"{ sudo python3 trust.py root.crt; serve; } >/dev/null
curl -sS -o /dev/null -w 'curl %{http_code}\n' https://127.0.0.1:8443/
python3 -c 'import urllib.request as r; print("python", r.urlopen("https://127.0.0.1:8443/").status)'
openssl verify -no-CAfile -no-CAstore -CApath /etc/ssl/certs server.crt
sudo update-ca-certificates 2>/dev/null | grep -o '0 added, 0 removed'
rm -rf image && mkdir -p image/root/tmp && cd image
for name in bin lib lib64; do ln -s usr/$name root/$name; done
printf '#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\nint main(void) { const char *f = getenv("NODE_EXTRA_CA_CERTS"); return puts(f ? f : "none"), f ? access(f, R_OK) : 1; }\n' > step.c
gcc -static -O1 -o root/step step.c
printf 'FROM scratch\nCOPY root/ /\nENV PIP_CERT=/own\nRUN ["/step"]\n' > Dockerfile
docker build --no-cache --progress=plain -t e2e-trust . 2>&1 | grep -o '/dev/vivarium/.*' | sed 's/^/step /'
docker run -d --rm --name e2e-trust -v /usr:/usr:ro e2e-trust sleep 600 >/dev/null
docker run --rm -v /usr:/usr:ro e2e-trust curl -sS -o /dev/null -w 'run %{http_code}\n' https://172.17.0.1:8443/
docker exec e2e-trust curl -sS -o /dev/null -w 'exec %{http_code}\n' https://172.17.0.1:8443/
docker exec e2e-trust sh -c 'echo own $PIP_CERT'
docker exec e2e-trust sh -c 'true >>$CURL_CA_BUNDLE || echo read-only' 2>/dev/null
docker export e2e-trust | tar t | grep -c -e vivarium -e '\.pem' | sed 's/^/left /' || true
docker kill e2e-trust >/dev/null
docker pull -q 172.17.0.1:8443/x 2>&1 | grep -c x509 | sed 's/^/strange to dockerd /' || true
sudo python3 ../trust.py
ls /etc/ssl/certs /usr/local/share/ca-certificates | grep -c vivarium || true"#;
    let folder = world.project("trust");
    let said = world.shell_ok(&folder, &format!("{PREPARE}{script}"))?;
    let expected = "curl 200\npython 200\nserver.crt: OK\n0 added, 0 removed\nstep /dev/vivarium/roots.pem\nrun 200\nexec 200\nown /own\nread-only\n\
                    left 0\nstrange to dockerd 0\n0";
    let said: Vec<&str> = said.lines().skip_while(|line| *line != "curl 200").collect();
    ensure(said.join("\n") == expected, said.join("\n"))
}

fn variables(world: &World) -> Case {
    let folder = world.project("trust");
    world.shell_ok(&folder, &format!("{PREPARE}sudo python3 trust.py root.crt"))?;
    let script = r#"serve
node -e 'fetch("https://127.0.0.1:8443/").then(a => console.log("node", a.status))'
sudo node -e 'fetch("https://127.0.0.1:8443/").then(a => console.log("sudo", a.status))'
echo "$E2E_PLACEHOLDER"
sudo python3 trust.py"#;
    let said = world.shell_ok(&folder, &format!("{PREPARE}{script}"))?;
    let said: Vec<&str> = said.lines().skip_while(|line| !line.starts_with("node ")).collect();
    ensure(said == ["node 200", "sudo 200", "p q=r"], said.join("\n"))?;
    let said = world.shell_ok(&folder, "env | grep -c -e _CA_ -e SSL_CERT || true")?;
    ensure(said == "0", said)
}

/// Java has a key store of its own. npm's registry is looked into, with our root; PyPI's files are passed through.
fn java(world: &World) -> Case {
    if !e2e::long_cases() {
        return Err(Verdict::Skipped(e2e::LONG.into()));
    }
    let script = r#"set -e
sudo apt-get update -q >/dev/null
sudo apt-get install -y -q default-jdk-headless ca-certificates-java >out 2>&1 || { tail out; exit 1; }
cat > Get.java <<'J'
import java.net.URI;
import java.net.http.*;
public class Get {
    public static void main(String[] places) throws Exception {
        for (String place : places) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(place)).build();
            HttpClient client = HttpClient.newHttpClient();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.discarding()).statusCode());
        }
    }
}
J
java Get.java https://registry.npmjs.org/is-number https://files.pythonhosted.org/"#;
    let said = world.shell_ok(&world.project("java"), script)?;
    ensure(said == "200\n200", said)
}
