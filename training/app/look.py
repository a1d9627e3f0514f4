"""Style and script of the page. Colours are Gradio's own variables, so light and dark follow the reader's setting."""

STYLE = """
:root { --mm-soft: #5d5d68; } .dark { --mm-soft: #a5a5b2; }
.mm-result h3 { font-size: .95rem; margin: 0 0 .35rem; color: var(--mm-soft) !important; font-weight: 600; }
.mm-result section { padding: .9rem 0; border-bottom: 1px solid var(--border-color-primary); }
.mm-result section:last-child { border-bottom: 0; }
.mm-result p { margin: .2rem 0; color: var(--body-text-color); }
.mm-result, .mm-card { color: var(--body-text-color); overflow-wrap: anywhere; font-size: 1rem; line-height: 1.5; }
.mm-soft { color: var(--mm-soft) !important; font-size: .88rem; }
.mm-small { font-size: .92rem; }
.mm-error { border-left: 4px solid #d55e00; padding: .5rem .8rem; }
.mm-answer { font-size: 1.2rem; font-weight: 650; }
.mm-right { color: #00795a !important; } .mm-wrong { color: #b84300 !important; }
.dark .mm-right { color: #4fd3ac !important; } .dark .mm-wrong { color: #ff9d5c !important; }
.mm-caret { opacity: .6; }
.mm-bars { list-style: none !important; padding: 0 !important; margin: .5rem 0 0 !important; }
.mm-option { display: grid; grid-template-columns: 1fr auto; column-gap: .6rem; margin: .35rem 0 !important;
  padding: 0 !important; }
.mm-track { grid-column: 1 / 3; height: .5rem; border-radius: .25rem; background: var(--border-color-primary);
  overflow: hidden; display: block; }
.mm-bar { display: block; height: 100%; background: #8a8a96; }
.mm-chosen .mm-bar { background: #0072b2; } .dark .mm-chosen .mm-bar { background: #56b4e9; }
.mm-chosen .mm-name, .mm-chosen .mm-share { font-weight: 650; }
.mm-share { font-variant-numeric: tabular-nums; }
.mm-columns { display: flex; gap: 1rem; flex-wrap: wrap; align-items: flex-start; }
.mm-columns > div:last-child { flex: 1 1 14rem; min-width: 0; }
.mm-stage { position: relative; display: inline-block; line-height: 0; max-width: 100%; border-radius: 6px;
  overflow: hidden; }
.mm-stage img { max-width: 100%; height: auto; margin: 0; }
.mm-pixels { image-rendering: pixelated; }
.mm-canvas { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
.mm-word { cursor: pointer; border-radius: 3px; padding: .1rem .15rem; line-height: 1.7;
  border-bottom: 1px dotted var(--mm-soft); color: var(--body-text-color); }
.mm-word:hover { background: var(--border-color-primary); }
.mm-word:focus-visible { outline: 2px solid #0072b2; outline-offset: 1px; }
.mm-word[aria-pressed=true] { background: #0072b2; color: #fff; }
.mm-label { color: var(--mm-soft); }
.mm-card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 1rem; }
.mm-pair { display: flex; gap: 1.2rem; flex-wrap: wrap; } .mm-pair > div { flex: 1 1 16rem; min-width: 0; }
.mm-gold { background: var(--background-fill-secondary); border-radius: 6px; padding: .5rem .8rem; }
#mm-head p { margin: 0 0 .2rem; }
footer .divider { display: none !important; }
footer button { color: var(--mm-soft) !important; }
@media (max-width: 768px) { #mm-out { min-height: 90vh; } .mm-word { padding: .15rem .2rem; line-height: 2; } }
"""

SCRIPT = """
(() => {
  const paint = (stage, packed) => {
    const canvas = stage.querySelector('canvas');
    if (!canvas || !packed) return;
    const [rows, hex] = packed.split(':');
    const side = Number(rows), image = new ImageData(side, side);
    for (let i = 0; i < side * side; i++) {
      const value = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
      image.data.set([14, 16, 46, Math.round(.86 * (255 - value))], 4 * i);
    }
    canvas.width = canvas.height = side;
    canvas.getContext('2d').putImageData(image, 0, 0);
    canvas.dataset.shown = packed;
  };
  document.addEventListener('click', event => {
    const word = event.target.closest && event.target.closest('.mm-word');
    if (!word) return;
    const box = word.closest('.mm-result'), stage = box.querySelector('.mm-stage');
    const again = word.getAttribute('aria-pressed') === 'true';
    box.querySelectorAll('.mm-word').forEach(other => other.setAttribute('aria-pressed', 'false'));
    if (!again) word.setAttribute('aria-pressed', 'true');
    paint(stage, again ? stage.dataset.grid : word.dataset.grid);
  });
  document.addEventListener('keydown', event => {
    const word = event.target.closest && event.target.closest('.mm-word');
    if (!word || (event.key !== 'Enter' && event.key !== ' ')) return;
    event.preventDefault();
    word.click();
  });
  const all = () => document.querySelectorAll('.mm-stage[data-grid]').forEach(stage => {
    const canvas = stage.querySelector('canvas');
    if (canvas && !canvas.dataset.shown) paint(stage, stage.dataset.grid);
  });
  new MutationObserver(all).observe(document.documentElement, { childList: true, subtree: true });
  window.mmScroll = () => {
    if (window.innerWidth > 768) return;
    const to = document.getElementById('mm-out');
    if (to) setTimeout(() => to.scrollIntoView({ behavior: 'smooth', block: 'start' }), 120);
  };
})();
"""

HEAD = f"<style>{STYLE}</style><script>{SCRIPT}</script>"
