//! The states of one job, the steps between them, and the promises that hold in each.

/// Attempts after which the caller is notified `failed`.
const MAX_ATTEMPTS: u8 = 2;

/// What the code does where earlier releases did something else.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and all combinations are walked through")]
pub(super) struct Rules {
    pub(super) waits_for_send: bool,
    pub(super) infer_is_no_queue: bool,
    pub(super) repeat_takes_cancel_back: bool,
    pub(super) cancel_looks: bool,
    pub(super) lost_answer_waits: bool,
    pub(super) unknown_waits: bool,
    pub(super) given_up_is_no_end: bool,
    pub(super) given_up_is_kept: bool,
}

impl Rules {
    pub(super) const OURS: Self = Self {
        waits_for_send: true,
        infer_is_no_queue: true,
        repeat_takes_cancel_back: true,
        cancel_looks: true,
        lost_answer_waits: true,
        unknown_waits: true,
        given_up_is_no_end: true,
        given_up_is_kept: true,
    };
}

/// What a host is at with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// It has the message and asks the bucket for the record.
    Start,
    Generate,
    PutRecord,
    /// The attempt failed: the record is looked for before anyone is notified.
    StoredOutcome,
    TellComplete,
    TellFailed,
    Ack,
}

/// The caller's request on its way into the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Send {
    Never,
    UnderWay,
    Ended,
}

/// Whose wish to cancel is known to the first host, which the caller speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wish {
    None,
    Cancelled,
    /// The caller was promised the job again after the wish.
    Repeated,
}

/// How much may still go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Faults {
    kills: u8,
    lost_answers: u8,
    outages: u8,
    untaken: u8,
    failures: u8,
    /// Nobody takes the notification for longer than it is sent again.
    given_up: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and all combinations are walked through")]
pub(super) struct Life {
    send: Send,
    /// The message waits in the queue.
    queued: bool,
    /// The message carries that its job has ended: its notification is deferred, and no handler is needed.
    ended: bool,
    /// The message lies among the dead letters because its notification was not taken.
    dead: bool,
    attempt: u8,
    hosts: [Phase; 2],
    /// The first host runs the job for a caller of `/infer`.
    infer: bool,
    record: bool,
    bucket_is_away: bool,
    wish: Wish,
    /// A caller was answered 202 and has not heard of an end since.
    promised: bool,
    told_complete: bool,
    told_failed: bool,
    /// `failed` was reported although the record was there.
    failed_beside_record: bool,
    /// 202 was answered, and then only the cancel that came before it was reported.
    promise_was_empty: bool,
    faults: Faults,
}

impl Life {
    pub(super) fn start() -> Self {
        Self {
            send: Send::Never,
            queued: false,
            ended: false,
            dead: false,
            attempt: 0,
            hosts: [Phase::Idle; 2],
            infer: false,
            record: false,
            bucket_is_away: false,
            wish: Wish::None,
            promised: false,
            told_complete: false,
            told_failed: false,
            failed_beside_record: false,
            promise_was_empty: false,
            faults: Faults { kills: 3, lost_answers: 2, outages: 2, untaken: 3, failures: 3, given_up: 1 },
        }
    }

    /// The promise that this state breaks.
    pub(super) fn broken(&self) -> Option<&'static str> {
        let is_held = self.queued || self.dead || self.hosts.iter().any(|phase| *phase != Phase::Idle);
        if self.promise_was_empty || self.promised && !is_held {
            return Some("202 is held");
        }
        if self.failed_beside_record {
            return Some("record => never failed");
        }
        (self.told_complete && self.told_failed).then_some("never two ends")
    }

    /// Everything that may happen next, by its name.
    pub(super) fn steps(self, rules: Rules) -> Vec<(&'static str, Self)> {
        let mut steps = Vec::new();
        self.caller(rules, &mut steps);
        self.world(&mut steps);
        for host in 0..self.hosts.len() {
            self.host(host, rules, &mut steps);
        }
        steps
    }

    fn caller(self, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let is_over = self.told_complete || self.told_failed;
        match self.send {
            Send::Never if !self.infer => {
                steps.push(("infer: claim", Self { infer: true, ..self }));
                steps.push(("submit: accept", Self { send: Send::UnderWay, ..self }));
            }
            Send::UnderWay => {
                steps.push(("submit: sent", Self { send: Send::Ended, queued: true, promised: true, ..self }));
                steps.push(("submit: not sent", Self { send: Send::Never, ..self }));
                if !rules.waits_for_send {
                    steps.push(("submit again: 202", Self { promised: true, ..self }));
                }
            }
            _ => {}
        }
        if self.infer {
            steps.push(("infer: caller is gone", Self { infer: false, ..self }));
            if !rules.infer_is_no_queue {
                steps.push(("submit beside infer: 202", Self { promised: true, ..self }));
            }
        }
        // The first host knows of a wish while the job waits, or runs there.
        if self.send == Send::Ended && self.wish == Wish::None && !is_over && !self.record {
            steps.push(("cancel", Self { wish: Wish::Cancelled, ..self }));
        }
        if self.wish == Wish::Cancelled && self.queued && !is_over {
            let wish = if rules.repeat_takes_cancel_back { Wish::None } else { Wish::Repeated };
            steps.push(("submit again after cancel: 202", Self { wish, promised: true, ..self }));
        }
    }

    fn world(self, steps: &mut Vec<(&'static str, Self)>) {
        let faults = self.faults;
        if faults.outages > 0 && !self.bucket_is_away {
            steps.push((
                "bucket: away",
                Self { bucket_is_away: true, faults: Faults { outages: faults.outages - 1, ..faults }, ..self },
            ));
        }
        if self.dead {
            steps.push(("redrive", Self { dead: false, queued: true, ..self }));
        }
        if self.bucket_is_away {
            steps.push(("bucket: back", Self { bucket_is_away: false, ..self }));
        }
    }

    fn host(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let phase = self.hosts[host];
        let faults = self.faults;
        let to = |phase: Phase, life: Self| life.at(host, phase);
        if phase != Phase::Idle && faults.kills > 0 {
            let killed = Self { queued: true, faults: Faults { kills: faults.kills - 1, ..faults }, ..self };
            // What the first host knew of wishes dies with it.
            let wish = if host == 0 { Wish::None } else { self.wish };
            steps.push(("kill -9", to(Phase::Idle, Self { wish, ..killed })));
        }
        let is_last = self.attempt >= MAX_ATTEMPTS;
        let is_cancelled = host == 0 && self.wish != Wish::None;
        match phase {
            Phase::Idle => self.take(host, is_cancelled, rules, steps),
            Phase::Start if self.bucket_is_away => {
                let gives_up = is_last && !rules.unknown_waits;
                steps.push(("run_steps: not known", if gives_up { to(Phase::TellFailed, self) } else { self.requeue(host) }));
            }
            Phase::Start => {
                steps.push(("run_steps", to(if self.record { Phase::TellComplete } else { Phase::Generate }, self)));
            }
            Phase::Generate => {
                steps.push(("generate", to(Phase::PutRecord, self)));
                if faults.failures > 0 {
                    let failed = Self { faults: Faults { failures: faults.failures - 1, ..faults }, ..self };
                    steps.push((
                        "generate: failed",
                        if is_last { to(Phase::StoredOutcome, failed) } else { failed.requeue(host) },
                    ));
                }
                if is_cancelled {
                    steps.push(("generate: cancelled", to(Phase::StoredOutcome, self)));
                }
            }
            Phase::PutRecord => self.put_record(host, rules, steps),
            Phase::StoredOutcome if self.bucket_is_away => steps.push(("stored_outcome: not known", self.requeue(host))),
            Phase::StoredOutcome => {
                steps.push(("stored_outcome", to(if self.record { Phase::TellComplete } else { Phase::TellFailed }, self)));
            }
            Phase::TellComplete => self.tell(host, ("tell_complete", rules), Self { told_complete: true, ..self }, steps),
            Phase::TellFailed => {
                let told = Self {
                    told_failed: true,
                    failed_beside_record: self.failed_beside_record || self.record,
                    promise_was_empty: self.promise_was_empty || self.wish == Wish::Repeated,
                    ..self
                };
                self.tell(host, ("tell_failed", rules), told, steps);
            }
            Phase::Ack => steps.push(("ack", to(Phase::Idle, Self { promised: false, ended: false, ..self }))),
        }
    }

    /// A message comes to an idle host.
    fn take(self, host: usize, is_cancelled: bool, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        if self.queued && self.ended {
            steps.push(("take_ended", Self { queued: false, ..self }.at(host, Phase::StoredOutcome)));
        } else if self.queued {
            let taken = Self { queued: false, attempt: (self.attempt + 1).min(MAX_ATTEMPTS + 1), ..self };
            let next = match (is_cancelled, rules.cancel_looks) {
                (true, true) => Phase::StoredOutcome,
                (true, false) => Phase::TellFailed,
                (false, _) if self.told_failed => Phase::StoredOutcome,
                (false, _) => Phase::Start,
            };
            steps.push(("start", taken.at(host, next)));
        }
    }

    fn put_record(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let is_last = self.attempt >= MAX_ATTEMPTS;
        let gives_up = is_last && !rules.lost_answer_waits;
        let unanswered = |life: Self| if gives_up { life.at(host, Phase::TellFailed) } else { life.requeue(host) };
        if self.bucket_is_away {
            return steps.push(("put_record: not taken", unanswered(self)));
        }
        steps.push(("put_record", Self { record: true, ..self }.at(host, Phase::TellComplete)));
        if self.faults.lost_answers > 0 {
            let faults = Faults { lost_answers: self.faults.lost_answers - 1, ..self.faults };
            steps.push(("put_record: answer lost", unanswered(Self { record: true, faults, ..self })));
        }
    }

    /// `told`: the life in which the receiver has taken it. It may take it and its answer be lost, or not take it: then the message waits,
    /// here or with its source, until it is given up.
    fn tell(self, host: usize, (name, rules): (&'static str, Rules), told: Self, steps: &mut Vec<(&'static str, Self)>) {
        steps.push((name, told.at(host, Phase::Ack)));
        if self.faults.untaken > 0 {
            let faults = Faults { untaken: self.faults.untaken - 1, ..self.faults };
            steps.push(("not taken: round", Self { faults, ..self }));
            steps.push(("not taken: defer", Self { faults, ended: true, ..self }.requeue(host)));
            steps.push(("taken, answer lost: defer", Self { faults, ended: true, ..told }.requeue(host)));
        }
        if self.faults.given_up > 0 {
            let faults = Faults { given_up: self.faults.given_up - 1, ..self.faults };
            let given_up = Self { faults, dead: rules.given_up_is_kept, ended: true, ..self };
            let end = if rules.given_up_is_no_end {
                given_up
            } else {
                Self { told_failed: true, failed_beside_record: self.failed_beside_record || self.record, ..given_up }
            };
            steps.push(("give_up", end.at(host, Phase::Idle)));
        }
    }

    fn requeue(self, host: usize) -> Self {
        Self { queued: true, ..self }.at(host, Phase::Idle)
    }

    fn at(mut self, host: usize, phase: Phase) -> Self {
        self.hosts[host] = phase;
        self
    }
}
