// Plays all versions of a clip at once through one AudioContext and lets one of them be heard.
"use strict";

(() => {
  const FADE = 0.008; // seconds of the crossfade between versions, and of starts and stops
  const LEAD = 0.03; // seconds from the command to the start, so that all sources start on the same sample

  // `context` is an AudioContext, or an OfflineAudioContext in a test.
  listeningPage.Player = class {
    constructor(context) {
      this.context = context;
      this.output = context.createGain();
      this.output.connect(context.destination);
      this.volume = context.createGain();
      this.volume.connect(this.output);
      this.buffers = [];
      this.gains = [];
      this.voices = [];
      this.selected = 0;
      this.matched = true;
      this.loop = null; // [start, end] in seconds
      this.playing = false;
      this.offset = 0; // where in the clip the sources started, or will
      this.started = 0; // when, in the context's time
      this.onended = () => {};
    }

    // Buffers of one clip; shorter ones are padded with silence, so that all of them loop alike.
    load(buffers, gains) {
      this.stop();
      const length = Math.max(...buffers.map((buffer) => buffer.length));
      this.buffers = buffers.map((buffer) => (buffer.length === length ? buffer : this.#padded(buffer, length)));
      this.gains = gains;
      this.offset = 0;
      this.loop = null;
      this.selected = Math.min(this.selected, buffers.length - 1);
    }

    #padded(buffer, length) {
      const result = this.context.createBuffer(buffer.numberOfChannels, length, buffer.sampleRate);
      for (let c = 0; c < buffer.numberOfChannels; c++) result.copyToChannel(buffer.getChannelData(c), c);
      return result;
    }

    get duration() { return this.buffers.length ? this.buffers[0].duration : 0; }

    // Seconds into the clip of what is heard now.
    get position() {
      if (!this.playing) return this.offset;
      const heard = this.context.currentTime - (this.context.outputLatency || 0);
      let at = this.offset + Math.max(0, heard - this.started);
      if (this.loop && at >= this.loop[1]) at = this.loop[0] + ((at - this.loop[0]) % (this.loop[1] - this.loop[0]));
      return Math.min(at, this.duration);
    }

    #level(index) { return index === this.selected ? (this.matched ? this.gains[index] : 1) : 0; }

    play() {
      if (this.playing || !this.buffers.length) return;
      if (this.context.resume && this.context.state === "suspended" && !this.context.startRendering) this.context.resume();
      if (this.loop && (this.offset < this.loop[0] || this.offset >= this.loop[1])) this.offset = this.loop[0];
      if (!this.loop && this.offset >= this.duration - 0.01) this.offset = 0;
      this.started = this.context.currentTime + LEAD;
      const fade = this.context.createGain(); // belongs to this start: an earlier one may still be fading out
      fade.connect(this.volume);
      fade.gain.setValueAtTime(0, this.started);
      fade.gain.linearRampToValueAtTime(1, this.started + FADE);
      this.fade = fade;
      this.voices = this.buffers.map((buffer, index) => {
        const source = new AudioBufferSourceNode(this.context, { buffer });
        const gain = new GainNode(this.context, { gain: this.#level(index) });
        source.connect(gain).connect(fade);
        if (this.loop) [source.loop, source.loopStart, source.loopEnd] = [true, ...this.loop];
        source.start(this.started, this.offset);
        return { source, gain };
      });
      const first = this.voices[0].source;
      first.onended = () => {
        if (!this.playing || this.voices[0]?.source !== first) return;
        this.playing = false;
        this.voices = [];
        this.offset = 0;
        this.onended();
      };
      this.playing = true;
    }

    pause() {
      if (!this.playing) return;
      const at = this.position;
      const now = this.context.currentTime;
      this.playing = false;
      this.fade.gain.cancelScheduledValues(now);
      this.fade.gain.setValueAtTime(1, now);
      this.fade.gain.linearRampToValueAtTime(0, now + FADE);
      for (const { source } of this.voices) source.stop(now + FADE);
      this.voices = [];
      this.offset = at;
    }

    stop() { this.pause(); this.offset = 0; }

    toggle() { if (this.playing) this.pause(); else this.play(); }

    seek(seconds) {
      const wasPlaying = this.playing;
      this.pause();
      this.offset = Math.min(Math.max(0, seconds), this.duration);
      if (wasPlaying) this.play();
    }

    // Hear another version: both go on, their gains cross.
    select(index) {
      if (index < 0 || index >= this.buffers.length) return;
      this.selected = index;
      this.#cross();
    }

    setMatched(matched) {
      this.matched = matched;
      this.#cross();
    }

    setLoop(loop) {
      const at = this.position;
      const wasPlaying = this.playing;
      this.pause();
      this.offset = at;
      this.loop = loop;
      if (wasPlaying) this.play();
    }

    #cross() {
      const now = this.context.currentTime;
      this.voices.forEach(({ gain }, index) => {
        const from = gain.gain.value;
        gain.gain.cancelScheduledValues(now);
        gain.gain.setValueAtTime(from, now);
        gain.gain.linearRampToValueAtTime(this.#level(index), now + FADE);
      });
    }
  };
})();
