//! The body of the fuzz target `ssh_agent`: what a guest sends to the agent, as a stream, and what an agent answers.

use ssh_agent::{Event, Filter, Frames, Grants, HostGrant, Verdict};

/// Each message is judged; then each is an answer to each kind of request.
pub(crate) fn run(data: &[u8]) {
    let mut filter = Filter::new(Grants {
        keys: vec![b"granted-key".to_vec()],
        hosts: vec![HostGrant { name: "git.example".into(), keys: vec![b"host-key".to_vec()] }],
        namespaces: vec!["git".into()],
    });
    let mut frames = Frames::default();
    for piece in data.chunks(11) {
        frames.feed(piece);
        while let Ok(Some(message)) = frames.next_message() {
            match filter.request(&message) {
                Verdict::Pass(Event::Listed) => assert_eq!(message, [11]),
                Verdict::Pass(Event::Signed { namespace }) => assert_eq!(namespace, "git"),
                // That host's key is none, so nothing can have been signed by it.
                Verdict::Pass(other) => panic!("passed without a bound session: {other:?}"),
                Verdict::Answer(answer, event) => {
                    assert!(matches!(event, Event::Refused(_)), "{event:?}");
                    assert!(answer == [5] || answer == [28]);
                }
            }
            for event in [Event::Listed, Event::Signed { namespace: "git".into() }] {
                let shown = filter.answer(&event, &message);
                assert!(shown.len() <= message.len().max(1));
            }
        }
    }
}
