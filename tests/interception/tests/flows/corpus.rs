//! Replays the fuzzer's corpus, and a thousand inputs made from it with a fixed seed; see `fuzz/README.md`.

#[path = "../../../../fuzz/bodies/intercept_flow.rs"]
mod body;

fn corpus() -> Vec<Vec<u8>> {
    let folder = format!("{}/../../fuzz/corpus/intercept_flow", env!("CARGO_MANIFEST_DIR"));
    let inputs: Vec<Vec<u8>> = std::fs::read_dir(folder)
        .expect("the corpus is there")
        .map(|entry| std::fs::read(entry.expect("an entry").path()).expect("the input can be read"))
        .collect();
    assert!(inputs.len() > 5);
    inputs
}

#[test]
fn the_corpus_holds() {
    let heads: usize = corpus().iter().map(|input| body::heads(input)).sum();
    assert!(heads >= 5, "{heads} requests reached the host: the inputs are not what they were");
}

/// Pieces of the corpus and of what heads are made of, put together at random.
#[test]
fn mixed_inputs_hold() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let words: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\0",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: evil.org\r\n",
        b"Host: api.example.com\r\n",
        b"GET /public/x HTTP/1.1\r\n",
        b"POST /public/x HTTP/1.1\r\n",
        b"0\r\n\r\n",
        b"5\r\nabcde\r\n",
        b"%2f",
        b"..",
        b"//",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n\r\n",
        b";",
        b"\\",
        b"%00",
    ];
    let corpus = corpus();
    for _ in 0..1000 {
        let mut input = corpus[next(corpus.len())].clone();
        for _ in 0..1 + next(4) {
            let at = next(input.len() + 1);
            match next(4) {
                0 => {
                    let other = &corpus[next(corpus.len())];
                    input.truncate(at);
                    input.extend_from_slice(&other[next(other.len())..]);
                }
                1 if at < input.len() => input[at] = next(256) as u8,
                2 if at < input.len() => {
                    let end = (at + 1 + next(8)).min(input.len());
                    input.drain(at..end);
                }
                _ => {
                    let word = words[next(words.len())];
                    input.splice(at..at, word.iter().copied());
                }
            }
        }
        body::run(&input);
    }
}
