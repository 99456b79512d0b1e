//! What a host does with its message, step by step.

use super::{Faults, Life, MAX_ATTEMPTS, Phase, Rules, Wish};

impl Life {
    pub(super) fn host(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let (phase, message) = self.hosts[host];
        let faults = self.faults;
        let to = |phase: Phase, life: Self| life.at(host, phase);
        if phase != Phase::Idle && faults.kills > 0 {
            let killed = Self { faults: Faults { kills: faults.kills - 1, ..faults }, ..self };
            // What the first host knew of wishes dies with it.
            let wish = if host == 0 { Wish::None } else { self.wish };
            steps.push(("kill -9", Self { wish, ..killed }.requeue(host)));
        }
        let is_last = self.messages[message].attempt >= MAX_ATTEMPTS;
        let is_cancelled = host == 0 && message == 0 && self.wish != Wish::None;
        match phase {
            Phase::Idle => self.take(host, rules, steps),
            Phase::Start if self.bucket_is_away => {
                let gives_up = is_last && !rules.unknown_waits;
                steps.push((
                    "run_steps: not known",
                    if gives_up { to(Phase::TellFailed, self) } else { self.wait(host, rules) },
                ));
            }
            Phase::Start => {
                let next = match self.record {
                    true => Phase::TellComplete,
                    false if self.held => Phase::Store,
                    false => Phase::Generate,
                };
                steps.push(("run_steps", to(next, self)));
            }
            Phase::Generate => self.generate(host, is_last, is_cancelled, steps),
            Phase::Store => {
                let kept = Self { held: self.held || rules.result_is_held, ..self };
                let not_taken = if is_last && !rules.outage_is_no_attempt {
                    to(Phase::StoredOutcome, kept)
                } else {
                    kept.wait(host, rules)
                };
                let stored = to(Phase::PutRecord, kept);
                steps.push(if self.bucket_is_away { ("store: not taken", not_taken) } else { ("store", stored) });
            }
            Phase::PutRecord => self.put_record(host, rules, steps),
            Phase::StoredOutcome if self.bucket_is_away => steps.push(("stored_outcome: not known", self.wait(host, rules))),
            Phase::StoredOutcome => {
                let failed = if rules.failure_is_noted { Phase::NoteFailed } else { Phase::TellFailed };
                steps.push(("stored_outcome", to(if self.record { Phase::TellComplete } else { failed }, self)));
            }
            Phase::TellComplete => self.tell(host, ("tell_complete", rules), Self { told_complete: true, ..self }, steps),
            Phase::NoteFailed | Phase::TellFailed => self.tell_failed(host, rules, steps),
            Phase::Ack => {
                let is_promise = message == usize::from(self.is_second);
                let acked = Self { promised: self.promised && !is_promise, ..self };
                steps.push((
                    "ack",
                    to(Phase::Idle, acked.with(message, |message| (message.noted, message.ended) = (false, false))),
                ));
            }
        }
    }

    fn generate(self, host: usize, is_last: bool, is_cancelled: bool, steps: &mut Vec<(&'static str, Self)>) {
        let faults = self.faults;
        let generated = Self { generations: (self.generations + 1).min(3), ..self };
        steps.push(("generate", generated.at(host, Phase::Store)));
        if faults.failures > 0 {
            let failed = Self { faults: Faults { failures: faults.failures - 1, ..faults }, ..self };
            steps
                .push(("generate: failed", if is_last { failed.at(host, Phase::StoredOutcome) } else { failed.requeue(host) }));
        }
        if is_cancelled {
            steps.push(("generate: cancelled", self.at(host, Phase::StoredOutcome)));
        }
    }

    fn tell_failed(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let (phase, message) = self.hosts[host];
        match phase {
            Phase::NoteFailed if self.bucket_is_away => steps.push(("note_failed: not taken", self.wait(host, rules))),
            Phase::NoteFailed => {
                steps.push(("note_failed", self.with(message, |message| message.noted = true).at(host, Phase::TellFailed)));
            }
            Phase::TellFailed => {
                let is_news = !self.is_second || message == 1;
                let told = Self {
                    told_failed: self.told_failed || is_news,
                    failed_beside_record: self.failed_beside_record || self.record && is_news,
                    promise_was_empty: self.promise_was_empty || self.wish == Wish::Repeated,
                    ..self
                };
                self.tell(host, ("tell_failed", rules), told, steps);
            }
            _ => {}
        }
    }

    /// A message comes to an idle host.
    fn take(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        for message in (0..self.messages.len()).filter(|message| self.messages[*message].queued) {
            if self.messages[message].ended {
                let taken = self.with(message, |message| message.queued = false);
                steps.push(("notify_again", taken.holding(host, message).at(host, Phase::StoredOutcome)));
                continue;
            }
            let attempt = (self.messages[message].attempt + 1).min(MAX_ATTEMPTS + 1);
            let taken = self.with(message, |message| {
                message.queued = false;
                message.attempt = attempt;
            });
            let is_cancelled = host == 0 && message == 0 && self.wish != Wish::None;
            let is_noted = if rules.note_is_of_one_message {
                self.messages[message].noted
            } else {
                // As if the job's failure were noted rather than the message's, and for good.
                self.messages.iter().any(|message| message.noted) || self.is_second
            };
            let next = match (is_cancelled, rules.cancel_looks) {
                (true, true) => Phase::StoredOutcome,
                (true, false) => Phase::TellFailed,
                // Only who had the message before has noted anything.
                (false, _) if is_noted && self.bucket_is_away => {
                    steps.push(("resume: not known", taken.holding(host, message).wait(host, rules)));
                    continue;
                }
                (false, _) if is_noted && self.record => Phase::TellComplete,
                (false, _) if is_noted => Phase::TellFailed,
                (false, _) => Phase::Start,
            };
            let told_without_a_run = next == Phase::TellFailed && message == 1 && !self.messages[1].noted && !is_cancelled;
            let taken = Self { second_was_not_run: self.second_was_not_run || told_without_a_run, ..taken };
            steps.push(("start", taken.holding(host, message).at(host, next)));
        }
    }

    fn put_record(self, host: usize, rules: Rules, steps: &mut Vec<(&'static str, Self)>) {
        let is_last = self.messages[self.hosts[host].1].attempt >= MAX_ATTEMPTS;
        let gives_up = is_last && !rules.lost_answer_waits;
        let unanswered = |life: Self| if gives_up { life.at(host, Phase::TellFailed) } else { life.wait(host, rules) };
        if self.bucket_is_away {
            return steps.push(("put_record: not taken", unanswered(self)));
        }
        steps.push(("put_record", Self { record: true, held: false, ..self }.at(host, Phase::TellComplete)));
        if self.faults.lost_answers > 0 {
            let faults = Faults { lost_answers: self.faults.lost_answers - 1, ..self.faults };
            steps.push(("put_record: answer lost", unanswered(Self { record: true, faults, ..self })));
        }
    }

    /// `told`: the life in which the receiver has taken it. It may take it and its answer be lost, or not take it: then the message waits,
    /// here or with its source, until it is given up.
    fn tell(self, host: usize, (name, rules): (&'static str, Rules), told: Self, steps: &mut Vec<(&'static str, Self)>) {
        let message = self.hosts[host].1;
        let deferred = |life: Self| life.with(message, |message| message.ended = true).requeue(host);
        steps.push((name, told.at(host, Phase::Ack)));
        if self.faults.untaken > 0 {
            let faults = Faults { untaken: self.faults.untaken - 1, ..self.faults };
            steps.push(("not taken: round", Self { faults, ..self }));
            steps.push(("not taken: defer", deferred(Self { faults, ..self })));
            steps.push(("taken, answer lost: defer", deferred(Self { faults, ..told })));
        }
        if self.faults.given_up > 0 {
            let faults = Faults { given_up: self.faults.given_up - 1, ..self.faults };
            let kept = self.with(message, |message| (message.ended, message.dead) = (true, rules.given_up_is_kept));
            let told_failed = kept.told_failed || !rules.given_up_is_no_end;
            let failed_beside_record = kept.failed_beside_record || kept.record && !rules.given_up_is_no_end;
            let given_up = Self { told_failed, failed_beside_record, faults, ..kept };
            steps.push(("keep_undelivered", given_up.at(host, Phase::Idle)));
        }
    }

    /// The message goes back for the store's sake.
    fn wait(self, host: usize, rules: Rules) -> Self {
        let message = self.hosts[host].1;
        let waiting = self.requeue(host);
        if !rules.outage_is_no_attempt || self.messages[message].ended {
            return waiting;
        }
        waiting.with(message, |message| message.attempt -= 1)
    }

    fn requeue(self, host: usize) -> Self {
        self.with(self.hosts[host].1, |message| message.queued = true).at(host, Phase::Idle)
    }
}
