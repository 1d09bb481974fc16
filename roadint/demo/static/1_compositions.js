// Compositions: text ↔ terms, as the server reads them; words and their differences.

function textOf(terms) {
  const parts = [...terms].map(([name, strength]) => {
    const size = Math.abs(strength);
    return [strength < 0, size === 1 ? name : `${Number(size.toPrecision(12))}*${name}`];
  });
  if (!parts.length) return 'none';
  const [[negative, first], ...others] = parts;
  return (negative ? '-' : '') + first + others.map(([minus, part]) => ` ${minus ? '-' : '+'} ${part}`).join('');
}

// Words that `base` does not have where `text` has them: [{text, differs}].
function differences(base, text) {
  const left = base.split(/\s+/).filter(Boolean);
  const pieces = text.match(/\s*\S+\s*/g) || [];
  const words = pieces.map((piece) => piece.trim());
  // Lengths of the longest common subsequences of the ends.
  const common = Array.from({ length: left.length + 1 }, () => new Uint16Array(words.length + 1));
  for (let i = left.length - 1; i >= 0; i--) {
    for (let j = words.length - 1; j >= 0; j--) {
      common[i][j] = left[i] === words[j]
        ? common[i + 1][j + 1] + 1
        : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const result = [];
  for (let i = 0, j = 0; j < words.length;) {
    if (i < left.length && left[i] === words[j]) {
      result.push({ text: pieces[j], differs: false });
      i++; j++;
    } else if (i < left.length && common[i + 1][j] >= common[i][j + 1]) {
      i++;
    } else {
      result.push({ text: pieces[j], differs: true });
      j++;
    }
  }
  return result;
}

// A DOM element: make('p', {class: 'x', onclick: f}, child, 'text'). Text is text, never markup.
function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'rect', 'line', 'text', 'g'].includes(tag);
  const element = svg
    ? document.createElementNS('http://www.w3.org/2000/svg', tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Put elements into a box. Those that are there already are not touched: they would lose the focus.
function place(box, elements) {
  const same = elements.length === box.children.length && elements.every((each, index) => each === box.children[index]);
  if (!same) box.replaceChildren(...elements);
}
