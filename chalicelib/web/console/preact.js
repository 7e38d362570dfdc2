// One module for Preact and htm, which are scripts that set globals.

const { h, render } = window.preact;

export const { useEffect, useRef, useState } = window.preactHooks;
export const html = window.htm.bind(h);
export { render };
