// What a person would see as broken on a page: boxes that stick out, texts over each other, text too faint or too small.
// test_report_browser.py puts it into a copy of the page and reads the element that it appends.

const found = { width: innerWidth, scroll: document.documentElement.scrollWidth, outside: [], overlap: [], faint: [], small: [] };
const box = (element) => element.getBoundingClientRect();
const shown = (element) => box(element).width > 0 && box(element).height > 0;
const scrolls = (element, within) => { // what is in a scroller of its own may be wider than what is seen of it
  for (; element !== within; element = element.parentElement) if (/auto|scroll/.test(getComputedStyle(element).overflowX)) return true;
  return false;
};
const name = (element) => `${element.tagName}: ${element.textContent.trim().slice(0, 60)}`;

for (const outer of document.querySelectorAll(".card, main > *, header, footer, dd, pre, h1")) {
  const { left, right } = box(outer);
  if (!shown(outer)) continue;
  for (const inner of outer.querySelectorAll("*")) {
    const b = box(inner);
    if (b.width && (b.right > right + 0.5 || b.left < left - 0.5) && !scrolls(inner.parentElement, outer)) found.outside.push(name(inner));
  }
}

for (const figure of document.querySelectorAll("svg")) {
  const frame = box(figure);
  const texts = [...figure.querySelectorAll("text")].filter(shown);
  texts.forEach((text, i) => {
    const a = box(text);
    const inside = a.left >= frame.left - 1 && a.right <= frame.right + 1 && a.top >= frame.top - 1 && a.bottom <= frame.bottom + 1;
    if (!inside) found.outside.push(name(text));
    for (const other of texts.slice(0, i)) {
      const b = box(other);
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 1 && down > 0.4 * Math.min(a.height, b.height)) found.overlap.push(`${name(text)} / ${name(other)}`);
    }
  });
}

// Contrast as WCAG 2.2 defines it (1.4.3); 4.5 is its minimum for text.
const channels = (colour) => {
  const [r, g, b, a = 1] = colour.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
  return colour.startsWith("color(srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a]; // what color-mix makes
};
const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const luminance = (colour) => {
  const [r, g, b] = channels(colour).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (channels(colour)[3] > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};

for (const element of document.querySelectorAll("body *")) {
  const speaks = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  if (!speaks || !shown(element)) continue;
  const figure = element.closest("svg");
  const style = getComputedStyle(element);
  const size = figure ? box(element).height : parseFloat(style.fontSize);
  if (size < 8.5) found.small.push(`${size.toFixed(1)} ${name(element)}`);
  if (figure?.querySelector("rect")) continue; // figures on coloured cells choose their colour by the cell
  const [a, b] = [luminance(figure ? style.fill : style.color), luminance(behind(figure ?? element))].sort((x, y) => x - y);
  const contrast = (b + 0.05) / (a + 0.05);
  if (contrast < 4.5) found.faint.push(`${contrast.toFixed(2)} ${name(element)}`);
}

const out = document.createElement("pre");
out.id = "found";
out.textContent = JSON.stringify(found);
document.body.append(out);
